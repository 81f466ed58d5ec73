"""Words for a direction: phrases of captions, ranked by how far along it the samples lie that they describe.

The score of a phrase is the mean coordinate of the samples whose caption has it minus that of all other samples, in
standard deviations of the coordinate. It has an interval over groups and two null distributions: random directions,
which show what any axis of these features does, and captions shuffled by group, which show what chance does.
"""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray
from numpy.typing import NDArray

from diffprobe.analysis.statistics import benjamini_hochberg, bootstrap_interval, permutation_null
from diffprobe.analysis.statistics.forms import SumStatistic
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, TooFewGroups
from diffprobe.core.groups import Groups

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_CLAUSE = re.compile(r"[,;:.!?()\n]+")


def words_in_order(text: str) -> list[list[str]]:
    """Return the lower-case words of each clause of a text; no phrase crosses a comma or the end of a sentence.

    >>> words_in_order("Noto emoji, medium-light skin tone")
    [['noto', 'emoji'], ['medium-light', 'skin', 'tone']]
    """
    clauses = [_WORD.findall(clause.lower()) for clause in _CLAUSE.split(text)]
    return [words for words in clauses if words]


def phrases_of(caption: str, max_words: int = 3) -> set[str]:
    """Return all words and n-grams of a caption, of up to `max_words` words.

    >>> sorted(phrases_of("cat, old dog"))
    ['cat', 'dog', 'old', 'old dog']
    """
    return {
        " ".join(words[start : start + n])
        for words in words_in_order(caption)
        for n in range(1, max_words + 1)
        for start in range(len(words) - n + 1)
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class PhraseBank:
    """Phrases, and which samples they describe."""

    phrases: tuple[str, ...]
    """The phrases in alphabetical order; of several that occur in the same samples the longest."""
    same: tuple[tuple[str, ...], ...]
    """Of each phrase, others that occur in the same samples."""
    present: Bool[ndarray, "samples phrases"]
    """Whether the caption of each sample has each phrase."""
    left_out: tuple[str, ...]
    """Phrases in too few samples or groups, or in too many: they have no score."""

    @classmethod
    def of(
        cls,
        captions: Sequence[str],
        groups: Sequence[Hashable],
        *,
        phrases: Sequence[str] | None = None,
        max_words: int = 3,
        min_count: int = 10,
        min_groups: int = 5,
    ) -> "PhraseBank":
        """Collect the phrases of captions, or find given ones in them.

        Args:
            captions: caption of each sample.
            groups: group of each sample.
            phrases: phrases to look for; None for all words and n-grams of the captions.
            max_words: largest number of words of an n-gram.
            min_count, min_groups: least number of samples and of groups with the phrase, and without it.

        Raises: ConfigError for inputs of different lengths or a range without phrases; EmptyClass if none is left.
        """
        if len(captions) != len(groups):
            raise ConfigError(f"{len(captions)} captions for {len(groups)} groups.")
        if max_words < 1 or min_count < 1 or min_groups < 1:
            raise ConfigError(
                f"max_words={max_words}, min_count={min_count}, min_groups={min_groups}: each must be at least 1."
            )
        wanted = None if phrases is None else list(dict.fromkeys(" ".join(sum(words_in_order(p), [])) for p in phrases))
        if wanted is not None and (not wanted or "" in wanted):
            raise ConfigError("a phrase of the bank has no word.", fix="one phrase of at least one word per line")
        longest = max_words if wanted is None else max(len(phrase.split()) for phrase in wanted)
        rows: dict[str, list[int]] = {phrase: [] for phrase in wanted or ()}
        for i, caption in enumerate(captions):
            for phrase in phrases_of(caption, longest):
                if wanted is None or phrase in rows:
                    rows.setdefault(phrase, []).append(i)
        ids = Groups.of(groups, what="phrases").ids
        kept: dict[bytes, list[str]] = {}
        left_out = []
        for phrase in sorted(rows):
            has = np.zeros(len(captions), dtype=bool)
            has[rows[phrase]] = True
            counts = [(int(side.sum()), len(np.unique(ids[side]))) for side in (has, ~has)]
            if all(n >= min_count and n_groups >= min_groups for n, n_groups in counts):
                kept.setdefault(has.tobytes(), []).append(phrase)
            else:
                left_out.append(phrase)
        if not kept:
            raise EmptyClass(
                f"no phrase occurs, and is absent, in at least {min_count} samples of {min_groups} groups.",
                f"samples: {len(captions)}, phrases found: {sum(map(bool, rows.values()))}",
                fix="a smaller min_count or min_groups, or more samples",
            )
        named = {max(names, key=lambda name: (len(name), name)): (key, names) for key, names in kept.items()}
        order = sorted(named)
        return cls(
            phrases=tuple(order),
            same=tuple(tuple(other for other in named[name][1] if other != name) for name in order),
            present=np.stack([np.frombuffer(named[name][0], dtype=bool) for name in order], axis=1),
            left_out=tuple(left_out),
        )


def phrase_scores(
    present: Bool[ndarray, "samples phrases"], coordinates: Float[ndarray, "samples axes"]
) -> Float[ndarray, "phrases axes"]:
    """Return the score of each phrase along each axis.

    Args:
        present: whether each sample has each phrase; some samples have it and some do not.
        coordinates: coordinate of each sample along each axis, in any unit.

    Returns: mean with the phrase minus mean without it, in standard deviations of the coordinate over all samples.
    Raises: NonFinite for NaN or infinity; EmptyClass for a coordinate that is constant.

    >>> phrase_scores(np.array([[True], [False]]), np.array([[3.0], [1.0]])).tolist()
    [[2.0]]
    """
    z, has = standardised(coordinates), present.astype(np.float64)
    n = has.sum(0)[:, None]
    return has.T @ z / n - (1 - has).T @ z / (len(has) - n)


def standardised(coordinates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates, shape (samples, ...), with mean 0 and standard deviation 1 over the samples.

    Raises: NonFinite for NaN or infinity; EmptyClass for a coordinate that is constant.
    """
    if not np.isfinite(coordinates).all():
        raise NonFinite("the coordinates along a direction contain NaN or infinity.")
    centred = coordinates - coordinates.mean(0)
    spread = centred.std(0)
    if (spread <= 1e-12 * np.abs(coordinates).max(initial=1e-300)).any():
        raise EmptyClass("all samples have the same coordinate along a direction: no phrase can be ranked.")
    scaled: NDArray[np.float64] = centred / spread
    return scaled


@dataclass(frozen=True, kw_only=True)
class RankedPhrase:
    """A phrase with its place along a direction."""

    phrase: str
    """The phrase."""
    same: tuple[str, ...]
    """Other phrases that occur in the same samples."""
    count: int
    """Samples whose caption has it."""
    score: float
    """Mean coordinate with the phrase minus that without it, in standard deviations."""
    interval: tuple[float, float] | None
    """Bootstrap interval over groups; None where too few resamples have the phrase."""
    random_quantile: float
    """Share of random directions with a smaller score, 0..1, ties counted by half."""
    p: float
    """Two-sided p against captions shuffled by group; 1 where the groups allow no other order."""
    smallest_p: float
    """The smallest p that could have been."""
    q: float
    """p adjusted for the number of phrases (Benjamini-Hochberg)."""
    text_score: float | None = None
    """Score along the direction in the embeddings of the captions; None where they were not at hand."""


def rank_phrases(
    bank: PhraseBank,
    coordinate: Float[ndarray, " samples"],
    random: Float[ndarray, "samples draws"],
    groups: Sequence[Hashable],
    *,
    text: Float[ndarray, " samples"] | None = None,
    n_permutations: int = 1000,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[RankedPhrase, ...]:
    """Rank phrases along a direction, the most positive first.

    Args:
        bank: the phrases of the samples.
        coordinate: coordinate of each sample along the direction. Use samples on which it was not fitted.
        random: coordinates along random directions.
        groups: group of each sample.
        text: coordinate of each caption along the direction of the same ends in text embeddings.
        n_permutations, n_resamples, level, seed: of shuffled captions and of the interval.

    Raises: ConfigError, NonFinite, EmptyClass; TooFewGroups for one group.
    """
    z = standardised(coordinate)
    scores = phrase_scores(bank.present, z[:, None])[:, 0]
    drawn = phrase_scores(bank.present, random)
    in_text = None if text is None else phrase_scores(bank.present, text[:, None])[:, 0]
    found = [
        _shuffled(bank.present[:, i], z, groups, n_permutations=n_permutations, seed=seed)
        for i in range(len(bank.phrases))
    ]
    adjusted = benjamini_hochberg([p for p, _ in found]).adjusted
    ranked = [
        RankedPhrase(
            phrase=phrase,
            same=bank.same[i],
            count=int(bank.present[:, i].sum()),
            score=float(scores[i]),
            interval=_interval(
                bank.present[:, i], z, groups, n_resamples=n_resamples, level=level, seed=seed,
            ),
            random_quantile=float(((drawn[i] < scores[i]) + 0.5 * (drawn[i] == scores[i])).mean()),
            p=found[i][0],
            smallest_p=found[i][1],
            q=adjusted[i],
            text_score=None if in_text is None else float(in_text[i]),
        )
        for i, phrase in enumerate(bank.phrases)
    ]  # fmt: skip
    return tuple(sorted(ranked, key=lambda one: (-one.score, one.phrase)))


def _shuffled(
    has: NDArray[np.bool_], z: NDArray[np.float64], groups: Sequence[Hashable], *, n_permutations: int, seed: int
) -> tuple[float, float]:
    """Return the two-sided p of a phrase and the smallest that could have been; 1 and 1 where no order differs."""
    total = z.sum()

    def score(labels: NDArray[np.int64]) -> NDArray[np.float64]:
        n, inside = (
            labels.sum(1),
            labels @ z,
        )  # groups differ in size, so the number of samples with the phrase does too
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = inside / n - (total - inside) / (len(z) - n)
        return np.where((n > 0) & (n < len(z)), gap, np.nan)

    labels = has.astype(np.int64)
    try:
        null = permutation_null(score, labels, groups, n_permutations=n_permutations, seed=seed)
    except (TooFewGroups, EmptyClass):
        return 1.0, 1.0
    tolerance = 1e-12 * max(1.0, abs(null.observed))
    below = (1 + int((null.values <= null.observed + tolerance).sum())) / (1 + len(null.values))
    return min(1.0, 2 * min(null.p, max(below, null.smallest_p))), min(1.0, 2 * null.smallest_p)


def _interval(
    has: NDArray[np.bool_],
    z: NDArray[np.float64],
    groups: Sequence[Hashable],
    *,
    n_resamples: int,
    level: float,
    seed: int,
) -> tuple[float, float] | None:
    inside, outside = has.astype(np.float64), (~has).astype(np.float64)

    def value(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3]
        return np.where((sums[:, 1] > 0) & (sums[:, 3] > 0), gap, np.nan)

    statistic = SumStatistic(parts=np.stack([inside * z, inside, outside * z, outside], axis=1), value=value)
    try:
        found = bootstrap_interval(statistic, groups, n_resamples=n_resamples, level=level, seed=seed)
    except EmptyClass:
        return None
    return found.low, found.high
