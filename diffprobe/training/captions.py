"""The words of an embedded model: a CLIP tokenizer learnt on the captions, and which caption a training step sees."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError


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


@dataclass(frozen=True, kw_only=True)
class CaptionRule:
    """Which of its captions a training sample sees, and how much of it.

    A caption that is always whole is the name of one drawing, and a small model learns drawings by name. Captions with
    gaps make it learn what single words stand for.
    """

    main: float = 0.5
    """Share of samples that see their main caption; the others see any of their captions."""
    gaps: float = 0.4
    """Share of captions that lose words."""
    words: float = 0.3
    """Share of words that such a caption loses."""
    foreign: float = 0.0
    """Share of the lost words in whose place a word drawn from the whole vocabulary stands: what an unknown word does
    to the others is then nothing new."""

    def __post_init__(self) -> None:
        for name in ("main", "gaps", "words", "foreign"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is no share: 0 to 1.")


def choose_captions(
    captions: Sequence[tuple[str, ...]],
    rule: CaptionRule,
    *,
    empty: Float[Tensor, " batch"],
    generator: torch.Generator,
    vocabulary: Sequence[str] = (),
) -> list[str]:
    """Choose one caption a sample: the empty one, the main one or any of the others, whole or with gaps.

    Args:
        captions: all captions of each sample, the main one first.
        empty: probability of the empty caption of each sample, for classifier-free guidance.
        generator: source of the choice.
        vocabulary: words that stand in for lost ones; without any, lost words leave no trace.
    """
    draws = torch.rand(len(captions), 4, generator=generator).tolist()
    chosen = []
    for options, share, (drop, main, which, gaps) in zip(captions, empty.tolist(), draws, strict=True):
        caption = options[0] if main < rule.main else options[int(which * len(options))]
        if drop < share:
            caption = ""
        elif gaps < rule.gaps:
            caption = _with_gaps(caption, rule, generator, vocabulary)
        chosen.append(caption)
    return chosen


def _with_gaps(caption: str, rule: CaptionRule, generator: torch.Generator, vocabulary: Sequence[str]) -> str:
    words = caption.split(" ")
    kept = []
    for word, (lose, replace, which) in zip(
        words, torch.rand(len(words), 3, generator=generator).tolist(), strict=True
    ):
        if lose >= rule.words:
            kept.append(word)
        elif vocabulary and replace < rule.foreign:
            kept.append(vocabulary[int(which * len(vocabulary))])
    return " ".join(kept)


def whole_words(tokenizer: Any) -> list[str]:
    """List the words of three letters and more that are one entry of a CLIP tokenizer's vocabulary, sorted."""
    ended = (entry.removesuffix("</w>") for entry in tokenizer.get_vocab() if entry.endswith("</w>"))
    return sorted(word for word in ended if len(word) > 2 and word.isalpha() and word.isascii())
