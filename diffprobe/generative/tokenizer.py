"""A CLIP tokenizer trained on the captions of a data set."""

import json
from collections.abc import Iterable
from typing import Any


def train_tokenizer(captions: Iterable[str], *, vocab_size: int, max_tokens: int) -> Any:
    """Train a byte-level BPE vocabulary on the distinct captions.

    Unknown words are split into known pieces, down to single bytes, so every text can be encoded. The vocabulary does
    not depend on the order of the captions.

    Args:
        captions: training captions; duplicates count once.
        vocab_size: largest number of entries. The 512 byte entries and two special tokens are always present.
        max_tokens: maximum caption length, special tokens included; longer captions are truncated.
    Returns: a transformers CLIPTokenizer.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    alphabet = sorted(ByteLevel.alphabet())
    symbols = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    blank = CLIPTokenizer(vocab={symbol: number for number, symbol in enumerate(symbols)}, merges=[])
    # The trainer breaks ties between equally frequent pairs by symbol id, and it assigns the ids of word ends in the
    # order of a randomised hash table. As special tokens, word ends have fixed ids.
    ends = [letter + "</w>" for letter in alphabet]
    learnt = blank.train_new_from_iterator(
        sorted(set(captions)), vocab_size, initial_alphabet=alphabet, new_special_tokens=ends
    )
    record = json.loads(learnt.backend_tokenizer.to_str())["model"]  # the only form that contains the merges
    merges: Any = [tuple(pair) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in record["merges"]]
    # The trainer leaves out word ends that occur in no caption; without them the end of an unknown word has no token.
    merges = merges[: max(0, vocab_size - len(symbols))]
    entries = [*symbols, *dict.fromkeys("".join(pair) for pair in merges)]
    return CLIPTokenizer(
        vocab={entry: number for number, entry in enumerate(entries)}, merges=merges, model_max_length=max_tokens
    )
