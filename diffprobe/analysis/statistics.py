"""Bootstrap intervals over clusters, in NumPy float64 with explicit seeds.

For permutation tests and false discovery rates, use `scipy.stats` (`permutation_test`, `false_discovery_control`).
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

Statistic = Callable[[NDArray[np.int64]], float]
"""Takes positions into the samples and returns a number."""
SINGLE_SAMPLES = "sample"
"""Name, in place of an attribute, of clusters that are single samples."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A bootstrap interval, with the numbers of clusters and resamples behind it."""

    estimate: float
    """The statistic of the original samples."""
    low: float
    """Lower percentile."""
    high: float
    """Upper percentile."""
    level: float
    """Nominal coverage, for example 0.95."""
    n_clusters: int
    """Independent units that were resampled."""
    n_resamples: int
    """Resamples drawn; the percentiles are of those in which the statistic is defined."""
    n_undefined: int
    """Resamples left out because the statistic is not defined there (for example a class without samples)."""


def bootstrap_interval(
    statistic: Statistic,
    clusters: Sequence[Hashable],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return a percentile bootstrap interval from resampling whole clusters.

    Variants of one drawing are not independent: resampling single images would give too narrow an interval.

    Args:
        statistic: takes positions into the samples (an int64 array, with repeats) and returns a number; raises
            EmptyClass where it is not defined.
        clusters: the cluster of each sample; one cluster per sample is the ordinary bootstrap.
        n_resamples: number of resamples.
        level: nominal coverage, between 0 and 1.
        seed: seed of the resampling.
    Raises: ConfigError with fewer than two clusters or a level outside (0, 1), NonFinite if the statistic is NaN,
        EmptyClass if it is undefined in more than half of the resamples.

    >>> x = np.arange(10.0)
    >>> interval = bootstrap_interval(lambda rows: float(x[rows].mean()), range(10))
    >>> interval.low < interval.estimate == 4.5 < interval.high
    True
    """
    if not 0 < level < 1 or n_resamples < 1:
        raise ConfigError(
            f"bootstrap: level={level} must lie between 0 and 1, n_resamples={n_resamples} must be at least 1."
        )
    members: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        members.setdefault(cluster, []).append(row)
    groups = [np.array(rows, dtype=np.int64) for rows in members.values()]
    if len(groups) < 2:
        raise ConfigError(f"bootstrap: {len(groups)} cluster in {len(clusters)} samples; an interval needs at least 2.")
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
            f"bootstrap: the statistic is not defined in {n_undefined} of {n_resamples} resamples.",
            f"clusters: {len(groups)}; a class occurs in too few of them",
        )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        estimate=estimate, low=float(low), high=float(high), level=level,
        n_clusters=len(groups), n_resamples=n_resamples, n_undefined=n_undefined,
    )  # fmt: skip


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise NonFinite(f"the statistic is {value}; it must be finite, or raise EmptyClass where it is not defined.")
    return float(value)
