"""Captions as sets of words: a baseline of text encoders that knows neither order nor meaning."""

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class WordVectors:
    """Captions as sets of words, weighted by rarity: log(captions / captions with the word).

    Args:
        captions: source of the vocabulary; other words are ignored later.
        width: numbers per vector: the most frequent words, of equally frequent ones the first by alphabet; columns
            beyond the vocabulary are 0. None for one number per word.
    """

    def __init__(self, captions: Sequence[str], *, width: int | None = None) -> None:
        counts = Counter(word for caption in captions for word in words_of(caption))
        kept = sorted(counts) if width is None else sorted(counts, key=lambda word: (-counts[word], word))[:width]
        self.width = len(kept) if width is None else width
        self._columns = {word: column for column, word in enumerate(kept)}
        self._weights = torch.zeros(self.width)
        self._weights[: len(kept)] = torch.tensor([len(captions) / counts[word] for word in kept]).log()

    def __call__(self, captions: Sequence[str]) -> Float[Tensor, "caption word"]:
        """Return the vectors of captions."""
        vectors = torch.zeros(len(captions), self.width)
        for row, caption in enumerate(captions):
            known = [self._columns[word] for word in words_of(caption) if word in self._columns]
            vectors[row, known] = 1.0
        return vectors * self._weights


def words_of(caption: str) -> set[str]:
    """Return the words of a caption.

    >>> sorted(words_of("noto emoji, health worker, medium-light skin tone"))
    ['emoji', 'health', 'medium-light', 'noto', 'skin', 'tone', 'worker']
    """
    return set(caption.replace(",", " ").split())
