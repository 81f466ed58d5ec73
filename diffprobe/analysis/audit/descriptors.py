"""Descriptors: which words of a bank are most similar to a subject, and which are at both ends of a direction."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class RankedWord:
    """A word with its similarity."""

    word: str
    """The descriptor."""
    cosine: float
    """Cosine of the centred latents, or with the direction."""
    percentile: float | None = None
    """Share of random directions to which the word is less similar, in absolute terms, 0..1; None for subjects."""


def cosines(one: Float64[np.ndarray, "n d"], other: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    """Return the cosine of each row with each row; 0 where a row is 0."""
    first, second = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-300) for rows in (one, other))
    return first @ second.T


def describe_subjects(
    subjects: Float64[np.ndarray, "subjects d"],
    bank: Float64[np.ndarray, "words d"],
    words: Sequence[str],
    *,
    n: int = 5,
) -> list[list[RankedWord]]:
    """Return the descriptors that are most similar to each subject, the most similar one first.

    Args:
        subjects, bank: latents averaged over templates and seeds and centred by the same mean.
        words: the word of each row of the bank.
        n: number of words.

    Raises: ConfigError for other numbers of words.
    """
    _require(bank, words)
    found = []
    for row in cosines(subjects, bank):
        order = np.argsort(-row, kind="stable")[:n]
        found.append([RankedWord(word=words[i], cosine=float(row[i])) for i in order])
    return found


def both_ends(
    unit: Float64[np.ndarray, " d"], bank: Float64[np.ndarray, "words d"], words: Sequence[str], *, n: int = 5,
    n_random: int = 1000, seed: int = 0,
) -> tuple[list[RankedWord], list[RankedWord]]:  # fmt: skip
    """Return the descriptors at the positive and at the negative end of a direction, the outermost first.

    Random directions are random combinations of the bank's own latents, which are about as long in each direction as
    the bank: isotropic ones would make any word look extreme.

    Raises: ConfigError for other numbers of words, or less than 2.
    """
    _require(bank, words)
    if len(words) < 2:
        raise ConfigError("the ends of a direction need at least 2 descriptors.")
    bank = bank - bank.mean(0)
    along = cosines(bank, unit[None])[:, 0]
    mixtures = np.random.default_rng(seed).normal(size=(n_random, len(words))) @ bank
    chance = np.abs(cosines(bank, mixtures))
    order = np.argsort(-along, kind="stable")

    def ranked(places: Sequence[int]) -> list[RankedWord]:
        return [
            RankedWord(word=words[i], cosine=float(along[i]), percentile=float((chance[i] < abs(along[i])).mean()))
            for i in places
        ]

    half = min(n, len(words) // 2)
    return ranked([int(i) for i in order[:half]]), ranked([int(i) for i in order[::-1][:half]])


def _require(bank: Float64[np.ndarray, "words d"], words: Sequence[str]) -> None:
    if len(bank) != len(words) or not len(words):
        raise ConfigError(f"{len(words)} descriptors for {len(bank)} latents: as many of each, at least 1.")
