"""The words of an embedded model: a CLIP tokenizer learnt on the captions, and which caption a training step sees."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import torch


def train_tokenizer(captions: Iterable[str], *, vocab_size: int, max_tokens: int) -> Any:
    """Learn a byte-level BPE vocabulary on `captions`, each distinct one counted once.

    Unknown words fall apart into known pieces, down to single bytes, so no caption is refused.

    Args:
        vocab_size: entries at most, the 512 byte entries and two special ones included, which are there in any case.
        max_tokens: longest caption, the special ones included; longer ones are cut.
    Returns: a transformers CLIPTokenizer.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    symbols = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    blank = CLIPTokenizer(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[])
    learnt = blank.train_new_from_iterator(sorted(set(captions)), vocab_size, initial_alphabet=alphabet)
    record = json.loads(learnt.backend_tokenizer.to_str())["model"]  # the only form that holds the merges
    merges: Any = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in record["merges"]]
    # The trainer leaves out the word ends that no caption has; without them an unknown word's end would be unreadable.
    merges = merges[: max(0, vocab_size - len(symbols))]
    entries = [*symbols, *dict.fromkeys("".join(pair) for pair in merges)]
    return CLIPTokenizer(
        vocab={entry: number for number, entry in enumerate(entries)}, merges=merges, model_max_length=max_tokens
    )


def choose_captions(
    captions: Sequence[tuple[str, ...]], *, main_share: float, drop_share: float, generator: torch.Generator
) -> list[str]:
    """Choose one caption a sample: the empty one, the main one, or one of the others.

    Args:
        captions: all captions of each sample, the main one first.
        main_share: share of samples that get their main caption (of those that get one).
        drop_share: share of samples that get the empty caption, for classifier-free guidance.
        generator: source of the choice.
    """
    draws = torch.rand(len(captions), 3, generator=generator).tolist()
    chosen = []
    for options, (drop, main, which) in zip(captions, draws, strict=True):
        if drop < drop_share:
            chosen.append("")
        elif main < main_share:
            chosen.append(options[0])
        else:
            chosen.append(options[int(which * len(options))])
    return chosen
