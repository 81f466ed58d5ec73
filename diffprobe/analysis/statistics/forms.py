"""The forms of a statistic that resampling knows: sums over samples, weights of samples, or any function of positions.

The first two are evaluated for many resamples at once; the last is called once per resample.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

Statistic = Callable[[NDArray[np.int64]], float]
"""Takes positions into the samples (with repeats) and returns a number; raises EmptyClass where it is not defined."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SumStatistic:
    """A function of sums over samples: a weighted mean, and whatever follows from counts such as those of a confusion.

    The cost of a resample is that of its groups, not of its samples.

    Raises: NonFinite for a part that is not finite.
    """

    parts: NDArray[np.float64]
    """What is summed, shape (samples, k)."""
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """Takes sums (resamples, k) and returns a number for each, NaN where it is not defined."""

    def __post_init__(self) -> None:
        if not np.isfinite(self.parts).all():
            row = int(np.flatnonzero(~np.isfinite(self.parts).all(axis=1))[0])
            raise NonFinite(f"the statistic sums a number that is not finite; the first is of sample {row}.")


@dataclass(frozen=True, kw_only=True, eq=False)
class WeightStatistic:
    """A function of how often each sample was drawn: an area under a curve, a rank correlation."""

    n_samples: int
    """Number of samples."""
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """Takes weights (resamples, samples) and returns a number for each resample, NaN where it is not defined."""


AnyStatistic = Statistic | SumStatistic | WeightStatistic


def mean_of(values: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> SumStatistic:
    """Return the weighted mean of one value per sample, shape (samples,).

    >>> evaluate(mean_of(np.array([1.0, 2.0, 6.0])), np.array([0, 2]))
    3.5
    """
    weights = np.ones(len(values)) if weights is None else weights
    return SumStatistic(parts=np.stack([weights * values, weights], axis=1), value=ratio)


def ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the first sum over the second, (resamples, 2) -> (resamples,); NaN where the second is 0."""
    below = sums[:, 1]
    return np.divide(sums[:, 0], below, out=np.full(len(sums), np.nan), where=below != 0)


def area_of(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> WeightStatistic:
    """Return the area under the ROC curve of one score per sample: ties count one half, as in `metrics.auroc`.

    >>> evaluate(area_of(np.array([1.0, 2.0, 2.0]), np.array([False, False, True])), np.arange(3))
    0.75
    """
    levels, places = np.unique(scores, return_inverse=True)
    order = np.argsort(places, kind="stable")
    starts = np.searchsorted(places[order], np.arange(len(levels)))

    def value(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        ordered = weights[:, order]
        above = np.add.reduceat(np.where(positive[order], ordered, 0.0), starts, axis=1)
        below = np.add.reduceat(np.where(positive[order], 0.0, ordered), starts, axis=1)
        pairs = above.sum(1) * below.sum(1)
        wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(1)
        return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)

    return WeightStatistic(n_samples=len(scores), value=value)


def evaluate(statistic: AnyStatistic, rows: NDArray[np.int64]) -> float:
    """Return a statistic of some samples, given by position with repeats.

    Raises: EmptyClass where it is not defined, NonFinite if it is infinite or a function of positions returns NaN.
    """
    if isinstance(statistic, SumStatistic):
        found = float(statistic.value(statistic.parts[rows].sum(0, keepdims=True))[0])
    elif isinstance(statistic, WeightStatistic):
        weights = np.bincount(rows, minlength=statistic.n_samples).astype(np.float64)
        found = float(statistic.value(weights[None])[0])
    else:
        return require_finite(statistic(rows))
    if math.isnan(found):
        raise EmptyClass("the statistic is not defined for these samples.")
    return require_finite(found)


def require_finite(value: float) -> float:
    """Return a finite value. Raises: NonFinite."""
    if not math.isfinite(value):
        raise NonFinite(f"the statistic is {value}; it must be finite, or raise EmptyClass where it is not defined.")
    return float(value)


def n_samples_of(statistic: AnyStatistic) -> int | None:
    """Return the number of samples of a statistic; None for a function of positions, which has none of its own."""
    if isinstance(statistic, SumStatistic):
        return len(statistic.parts)
    return statistic.n_samples if isinstance(statistic, WeightStatistic) else None


def mean_statistic(statistics: Sequence[AnyStatistic]) -> AnyStatistic:
    """Return the mean of statistics of the same samples, for example of one probe trained with several seeds.

    Undefined where any of them is.

    Raises: ConfigError for none, or if they have different numbers of samples.

    >>> evaluate(mean_statistic([mean_of(np.array([1.0, 0.0])), mean_of(np.array([0.0, 0.0]))]), np.arange(2))
    0.25
    """
    sizes = {size for size in map(n_samples_of, statistics) if size is not None}
    if not statistics or len(sizes) > 1:
        raise ConfigError(f"a mean of {len(statistics)} statistics of {sorted(sizes)} samples: at least 1, one size.")
    if len(statistics) == 1:
        return statistics[0]
    sums = [one for one in statistics if isinstance(one, SumStatistic)]
    if len(sums) == len(statistics):
        ends = np.cumsum([one.parts.shape[1] for one in sums])[:-1]
        return SumStatistic(
            parts=np.concatenate([one.parts for one in sums], axis=1),
            value=lambda found: np.mean(
                [one.value(part) for one, part in zip(sums, np.split(found, ends, axis=1), strict=True)], axis=0
            ),
        )
    weighted = [one for one in statistics if isinstance(one, WeightStatistic)]
    if len(weighted) == len(statistics):
        return WeightStatistic(
            n_samples=weighted[0].n_samples,
            value=lambda weights: np.mean([one.value(weights) for one in weighted], axis=0),
        )
    return lambda rows: float(np.mean([evaluate(one, rows) for one in statistics]))


def difference(one: AnyStatistic, other: AnyStatistic) -> AnyStatistic:
    """Return one minus other, of the same samples in each resample: undefined where either is.

    Raises: ConfigError if they have different numbers of samples.

    >>> evaluate(difference(mean_of(np.array([1.0, 0.0])), mean_of(np.array([0.0, 0.0]))), np.arange(2))
    0.5
    """
    sizes = n_samples_of(one), n_samples_of(other)
    if None not in sizes and sizes[0] != sizes[1]:
        raise ConfigError(f"a paired difference of {sizes[0]} and {sizes[1]} samples: both need the same samples.")
    if isinstance(one, SumStatistic) and isinstance(other, SumStatistic):
        width, ours, theirs = one.parts.shape[1], one.value, other.value
        return SumStatistic(
            parts=np.concatenate([one.parts, other.parts], axis=1),
            value=lambda sums: ours(sums[:, :width]) - theirs(sums[:, width:]),
        )
    if isinstance(one, WeightStatistic) and isinstance(other, WeightStatistic):
        first, second = one.value, other.value
        return WeightStatistic(n_samples=one.n_samples, value=lambda weights: first(weights) - second(weights))
    return lambda rows: evaluate(one, rows) - evaluate(other, rows)
