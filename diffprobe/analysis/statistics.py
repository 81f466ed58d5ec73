"""Intervals, permutation tests and the correction for many tests. Owns what "by chance" means in a table or page.

Plain NumPy in float64; every random choice comes from a seed that is passed in.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

Statistic = Callable[[NDArray[np.int64]], float]
Alternative = Literal["greater", "less", "two-sided"]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap interval and what it rests on."""

    estimate: float
    """The statistic on the samples as they are."""
    low: float
    """Lower percentile."""
    high: float
    """Upper percentile."""
    level: float
    """Nominal coverage, for example 0.95."""
    n_clusters: int
    """Independent units that were resampled."""
    n_resamples: int
    """Resamples drawn; those that are not `n_undefined` stand behind the percentiles."""
    n_undefined: int
    """Those of them left out because the statistic does not exist there (a class drew no sample)."""


def bootstrap_interval(
    statistic: Statistic,
    clusters: Sequence[Hashable],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Bootstrap a percentile interval by resampling whole clusters.

    Variants of one drawing are not independent; resampling single images would make the interval too narrow.

    Args:
        statistic: takes positions into the samples (an int64 array, with repeats) and returns a number; raises
            EmptyClass where it does not exist.
        clusters: the cluster of each sample; one cluster a sample gives the ordinary bootstrap.
        n_resamples: number of resamples.
        level: nominal coverage, between 0 and 1.
        seed: of the resampling.
    Raises: ConfigError with fewer than two clusters or a level outside (0, 1), NonFinite if the statistic gives NaN,
        EmptyClass if it is undefined in more than half of the resamples.

    >>> x = np.arange(10.0)
    >>> interval = bootstrap_interval(lambda rows: float(x[rows].mean()), range(10))
    >>> interval.low < interval.estimate == 4.5 < interval.high
    True
    """
    if not 0 < level < 1 or n_resamples < 1:
        raise ConfigError(
            f"bootstrap: level={level} must lie between 0 and 1, n_resamples={n_resamples} be at least 1."
        )
    members: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    groups = [np.array(rows, dtype=np.int64) for rows in members.values()]
    if len(groups) < 2:
        raise ConfigError(
            f"bootstrap: {len(groups)} cluster in {len(clusters)} samples; an interval needs two or more."
        )
    estimate = _finite(statistic(np.arange(len(clusters), dtype=np.int64)))
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(n_resamples):
        drawn = generator.integers(len(groups), size=len(groups))
        try:
            values.append(_finite(statistic(np.concatenate([groups[i] for i in drawn]))))
        except EmptyClass:
            continue
    n_undefined = n_resamples - len(values)
    if n_undefined * 2 > n_resamples:
        raise EmptyClass(
            f"bootstrap: the statistic does not exist in {n_undefined} of {n_resamples} resamples.",
            f"clusters: {len(groups)}; a class lives in too few of them",
        )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        estimate=estimate, low=float(low), high=float(high), level=level,
        n_clusters=len(groups), n_resamples=n_resamples, n_undefined=n_undefined,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Permutation:
    """The outcome of a permutation test."""

    observed: float
    """The statistic with the true labels."""
    p: float
    """Share of relabelings at least as extreme, the true one counted in."""
    p_min: float
    """The smallest p this test could have given; a p at this value says "at most", not "equal"."""
    null_mean: float
    """Mean of the statistic over the relabelings."""
    null_sd: float
    """Standard deviation (ddof 1) of the statistic over the relabelings."""
    n_permutations: int
    """Relabelings drawn."""


def permutation_test(
    statistic: Callable[[NDArray[np.int64]], float],
    labels: Sequence[int] | NDArray[np.int64],
    *,
    blocks: Sequence[Hashable] | None = None,
    n_permutations: int = 999,
    alternative: Alternative = "greater",
    seed: int = 0,
) -> Permutation:
    """Test a statistic against labels permuted at random.

    p = (1 + relabelings at least as extreme) / (1 + n_permutations). It can't fall below 1 / (1 + n_permutations), nor
    below one over the number of distinct relabelings; the larger of the two is `p_min`.

    Args:
        statistic: takes labels (int64, one a sample) and returns a number.
        labels: class ids, not one-hot.
        blocks: where given, labels are exchanged only inside a block (same base, same template).
        n_permutations: relabelings to draw.
        alternative: which side is extreme; "two-sided" compares distances from the mean of the null.
        seed: of the permutations.
    Raises: ConfigError if labels and blocks differ in length or nothing can be exchanged, NonFinite on NaN.
    """
    truth = np.asarray(labels, dtype=np.int64)
    if blocks is not None and len(blocks) != len(truth):
        raise ConfigError(f"permutation test: {len(truth)} labels, {len(blocks)} blocks; one block a label.")
    if n_permutations < 2:
        raise ConfigError(f"permutation test: n_permutations={n_permutations}; two or more are needed for a spread.")
    members: dict[Hashable, list[int]] = {}
    for row, block in enumerate(blocks if blocks is not None else [0] * len(truth)):
        members.setdefault(block, []).append(row)
    groups = [np.array(rows, dtype=np.int64) for rows in members.values()]
    n_distinct = _count_relabelings([truth[rows] for rows in groups])
    if n_distinct < 2:
        raise ConfigError("permutation test: all labels of each block are equal, so there is nothing to exchange.")
    generator = np.random.default_rng(seed)
    null = np.empty(n_permutations)
    for i in range(n_permutations):
        shuffled = truth.copy()
        for rows in groups:
            shuffled[rows] = truth[generator.permutation(rows)]
        null[i] = _finite(statistic(shuffled))
    observed = _finite(statistic(truth))
    return Permutation(
        observed=observed,
        p=permutation_p(observed, null, alternative),
        p_min=max(1 / (1 + n_permutations), 1 / n_distinct),
        null_mean=float(null.mean()),
        null_sd=float(null.std(ddof=1)),
        n_permutations=n_permutations,
    )


def permutation_p(observed: float, null: Sequence[float] | NDArray[np.float64], alternative: Alternative) -> float:
    """Return (1 + null values at least as extreme as `observed`) / (1 + null values).

    Source: Phipson and Smyth, SAGMB 2010: the observed value counts as one of the relabelings, so p is never 0.

    >>> permutation_p(3.0, [0.0, 1.0, 2.0], "greater")
    0.25
    """
    values = np.asarray(null, dtype=np.float64)
    if alternative == "greater":
        extreme = values >= observed
    elif alternative == "less":
        extreme = values <= observed
    else:
        centre = values.mean()
        extreme = np.abs(values - centre) >= abs(observed - centre)
    return float((1 + extreme.sum()) / (1 + len(values)))


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Return the q-values of `p` in its order: rejecting q <= a holds the false discovery rate at a.

    Source: Benjamini and Hochberg, JRSS B 1995, in its adjusted form.
    Raises: ConfigError if a p-value lies outside 0..1.

    >>> benjamini_hochberg([0.01, 0.02, 0.5])
    [0.03, 0.03, 0.5]
    """
    values = np.asarray(p, dtype=np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise ConfigError(f"p-values lie between 0 and 1; given: {list(p)}.")
    n = len(values)
    order = np.argsort(values)[::-1]  # from the largest: q never exceeds the q of a larger p
    scaled = values[order] * n / np.arange(n, 0, -1)
    q = np.empty(n)
    q[order] = np.minimum.accumulate(scaled) if n else scaled
    return [float(value) for value in q]


def _count_relabelings(blocks: Sequence[NDArray[np.int64]]) -> int:
    """Count the distinct labelings that exchanging inside the blocks can reach."""
    total = 1
    for labels in blocks:
        counts = Counter(labels.tolist()).values()
        total *= math.factorial(sum(counts)) // math.prod(math.factorial(count) for count in counts)
        if total > 10**12:  # already far below any 1 / (1 + n_permutations)
            return total
    return total


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NonFinite(f"a statistic gave {value}; it must be finite, or raise EmptyClass where it does not exist.")
    return float(value)
