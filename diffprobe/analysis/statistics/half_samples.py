"""Intervals from half samples, for statistics that repeated samples would bias: agreements of partitions, neighbours.

A bootstrap resample holds some samples several times, and a statistic that counts coincidences, such as a mutual
information, takes these repeats for structure. A half drawn without replacement has no repeats, and its deviation from
the whole has the variance of the statistic of all groups: the delete-d jackknife with d = n / 2 (Shao and Wu, Annals of
Statistics 17 (1989) 1176).
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics.bootstrap import Interval, check_settings
from diffprobe.core.errors import NonFinite
from diffprobe.core.groups import Groups

LEAST_GROUPS = 4
"""Fewest groups: of fewer there are hardly two different halves."""


def half_sample_interval(
    statistic: Callable[[NDArray[np.int64]], float],
    clusters: Sequence[Hashable],
    *,
    n_resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Return the interval of a statistic from random halves of the groups.

    Its ends are the estimate and the quantiles of the deviations of the halves from their mean, so that a bias of
    smaller samples does not shift it.

    Args:
        statistic: takes ascending positions into the samples, without repeats, and returns a number.
        clusters: the group of each sample; groups are taken whole.
        n_resamples: number of halves.
        level: nominal coverage, between 0 and 1.
        seed: seed of the halves.
    Raises: ConfigError as `bootstrap_interval`; TooFewGroups for fewer than `LEAST_GROUPS`; NonFinite for a statistic
        that is not finite.

    >>> x = np.arange(40.0)
    >>> interval = half_sample_interval(lambda rows: float(x[rows].mean()), range(40))
    >>> interval.low < interval.estimate == 19.5 < interval.high
    True
    """
    check_settings(level, n_resamples)
    groups = Groups.of(clusters, what="half samples", at_least=LEAST_GROUPS)
    rng = np.random.default_rng(seed)
    taken = np.zeros((n_resamples, groups.n), dtype=bool)
    for row in taken:
        row[rng.permutation(groups.n)[: groups.n // 2]] = True
    estimate = statistic(np.arange(len(clusters), dtype=np.int64))
    values = np.array([statistic(np.flatnonzero(row[groups.ids])) for row in taken])
    if not np.isfinite([estimate, *values]).all():
        raise NonFinite("half samples: the statistic of all samples or of a half is not finite.")
    scale = np.sqrt((groups.n // 2) / (groups.n - groups.n // 2))  # 1 for an even number of groups
    low, high = estimate + scale * np.quantile(values - values.mean(), [(1 - level) / 2, (1 + level) / 2])
    return Interval(
        estimate=float(estimate), low=float(low), high=float(high), level=level, n_clusters=groups.n,
        n_resamples=n_resamples, n_undefined=0,
    )  # fmt: skip
