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

    Unknown words fall apart into known pieces, down to single bytes, so no caption is refused. Equal captions give an
    equal vocabulary, whatever their order.

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
    # Between equally frequent pairs the trainer decides by the numbers of their symbols, and it numbers the word ends
    # as it meets them, in the order of a hash table that is another one each time. As special tokens they come first.
    ends = [letter + "</w>" for letter in alphabet]
    learnt = blank.train_new_from_iterator(
        sorted(set(captions)), vocab_size, initial_alphabet=alphabet, new_special_tokens=ends
    )
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

    A caption that is always whole is the name of one drawing, and a small model learns drawings by name: a name that it
    never saw then says something definite, and wrong. Captions with gaps make it learn what single words stand for, and
    that a word may say nothing.
    """

    main: float = 0.5
    """Share of samples that see their main caption; the others see any of their captions."""
    p_dropout: float = 0.4
    """Share of captions that lose words."""
    word_dropout: float = 0.3
    """Share of words that such a caption loses."""
    rarity_power: float = 0.0
    """How much longer common words last: a word of n groups of drawings (see `Words`) is lost with probability
    word_dropout * n ** -rarity_power. 0 takes all words alike; 0.25 takes a word of 16 groups half as often as a name."""
    invented: float = 0.0
    """Share of the lost words in whose place an invented one stands, as an unknown word will when captions are new."""

    def __post_init__(self) -> None:
        for name in ("main", "p_dropout", "word_dropout", "rarity_power", "invented"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is no share: 0 to 1.")


class Words:
    """The words of a training set: in how many groups of drawings each stands, and words that nobody knows.

    Args:
        captions: all captions of each sample.
        groups: the drawing that each sample is a variant of; a word's count is the number of different ones.
    """

    def __init__(self, captions: Sequence[tuple[str, ...]], groups: Sequence[str]) -> None:
        found: dict[str, set[str]] = {}
        for options, group in zip(captions, groups, strict=True):
            for word in {bare(word) for caption in options for word in caption.split(" ")}:
                found.setdefault(word, set()).add(group)
        self.counts = {word: len(members) for word, members in found.items()}
        self._parts = sorted(word for word in found if len(word) > 2 and word.isalpha())

    def invent(self, one: float, other: float) -> str:
        """Return the first half of one word and the last of another, which two draws from [0, 1) choose."""
        if not self._parts:
            return ""
        first, last = (self._parts[int(draw * len(self._parts))] for draw in (one, other))
        return first[: (len(first) + 1) // 2] + last[len(last) // 2 :]


def bare(word: str) -> str:
    """Return a word of a caption without the comma that ends a part of it."""
    return word.removesuffix(",")


def choose_captions(
    captions: Sequence[tuple[str, ...]],
    rule: CaptionRule,
    *,
    empty: Float[Tensor, " batch"],
    generator: torch.Generator,
    words: Words,
) -> list[str]:
    """Choose one caption a sample: the empty one, the main one or any of the others, whole or with gaps.

    Args:
        captions: all captions of each sample, the main one first.
        empty: probability of the empty caption of each sample, for classifier-free guidance.
        generator: source of the choice.
        words: of the training set.
    """
    draws = torch.rand(len(captions), 4, generator=generator).tolist()
    chosen = []
    for options, share, (drop, main, which, gaps) in zip(captions, empty.tolist(), draws, strict=True):
        caption = options[0] if main < rule.main else options[int(which * len(options))]
        if drop < share:
            caption = ""
        elif gaps < rule.p_dropout:
            caption = _with_gaps(caption, rule, generator, words)
        chosen.append(caption)
    return chosen


def _with_gaps(caption: str, rule: CaptionRule, generator: torch.Generator, words: Words) -> str:
    kept = []
    parts = caption.split(" ")
    draws = torch.rand(len(parts), 4, generator=generator).tolist()
    for word, (lose, replace, one, other) in zip(parts, draws, strict=True):
        if lose >= rule.word_dropout * words.counts.get(bare(word), 1) ** -rule.rarity_power:
            kept.append(word)
        elif replace < rule.invented:
            kept.append(words.invent(one, other) + word[len(bare(word)) :])
    return " ".join(kept)
