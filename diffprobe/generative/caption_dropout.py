"""Which caption a training sample is trained with, and which of its words are dropped or replaced.

Complete captions are unique names of images, and a small model memorises images by their names. Dropping words makes
the model learn what single words mean, and that a word may carry no information.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CaptionDropoutConfig:
    """Choice among the captions of a sample, and dropout of their words. All values are in 0..1."""

    main: float = 0.5
    """Share of samples that use their main caption; the others use any of their captions."""
    p_dropout: float = 0.4
    """Share of captions from which words are dropped."""
    word_dropout: float = 0.3
    """Share of words that such a caption loses."""
    rarity_power: float = 0.0
    """Protection of common words: a word of n groups of images (see `CaptionVocabulary`) is dropped with probability
    word_dropout * n ** -rarity_power. 0 treats all words alike; 0.25 drops a word of 16 groups half as often as a word
    of one."""
    invented: float = 0.0
    """Share of dropped words that are replaced by an invented word, to prepare for unknown words in new captions."""

    def __post_init__(self) -> None:
        for name in ("main", "p_dropout", "word_dropout", "rarity_power", "invented"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: 0 to 1.")


class CaptionVocabulary:
    """The words of the training captions: the number of image groups that use each word, and invented words.

    Args:
        captions: all captions of each sample.
        groups: the image group of each sample (variants of one drawing); a word counts once per group.
    """

    def __init__(self, captions: Sequence[tuple[str, ...]], groups: Sequence[str]) -> None:
        members: dict[str, set[str]] = {}
        for options, group in zip(captions, groups, strict=True):
            for word in {strip_comma(word) for caption in options for word in caption.split(" ")}:
                members.setdefault(word, set()).add(group)
        self.counts = {word: len(found) for word, found in members.items()}
        self._parts = sorted(word for word in members if len(word) > 2 and word.isalpha())

    def invent(self, first: float, second: float) -> str:
        """Return the first half of one word joined to the last half of another; draws from [0, 1) select the two."""
        if not self._parts:
            return ""
        start, end = (self._parts[int(draw * len(self._parts))] for draw in (first, second))
        return start[: (len(start) + 1) // 2] + end[len(end) // 2 :]


def strip_comma(word: str) -> str:
    """Return a word of a caption without a trailing comma."""
    return word.removesuffix(",")


def choose_captions(
    captions: Sequence[tuple[str, ...]],
    config: CaptionDropoutConfig,
    *,
    p_empty: Float[Tensor, " batch"],
    generator: torch.Generator,
    vocabulary: CaptionVocabulary,
) -> list[str]:
    """Choose one caption per sample: the empty one, the main one or any other, complete or with dropped words.

    Args:
        captions: all captions of each sample, the main one first.
        config: shares of the choices.
        p_empty: probability of the empty caption of each sample, for classifier-free guidance.
        generator: source of randomness.
        vocabulary: the words of the training set.
    """
    draws = torch.rand(len(captions), 4, generator=generator).tolist()
    chosen = []
    for options, share, (empty, main, which, dropout) in zip(captions, p_empty.tolist(), draws, strict=True):
        caption = options[0] if main < config.main else options[int(which * len(options))]
        if empty < share:
            caption = ""
        elif dropout < config.p_dropout:
            caption = _drop_words(caption, config, generator, vocabulary)
        chosen.append(caption)
    return chosen


def _drop_words(
    caption: str, config: CaptionDropoutConfig, generator: torch.Generator, vocabulary: CaptionVocabulary
) -> str:
    kept = []
    words = caption.split(" ")
    draws = torch.rand(len(words), 4, generator=generator).tolist()
    for word, (drop, replace, first, second) in zip(words, draws, strict=True):
        if drop >= config.word_dropout * vocabulary.counts.get(strip_comma(word), 1) ** -config.rarity_power:
            kept.append(word)
        elif replace < config.invented:
            kept.append(vocabulary.invent(first, second) + word[len(strip_comma(word)) :])
    return " ".join(kept)
