"""Resamples of groups, drawn once: many statistics over them, and the paired interval of each two."""

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics.bootstrap import Interval, Method, check_settings, draws, ends, resampled
from diffprobe.analysis.statistics.forms import AnyStatistic, evaluate, n_samples_of
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups


class PairedResamples:
    """Resamples of whole groups over which each statistic is computed once, however many it is compared with.

    The interval of two statistics equals that of `paired_interval` with the same seed.

    Args:
        clusters: the group of each sample.
        n_resamples: number of resamples.
        seed: seed of the resampling.

    Raises: TooFewGroups; ConfigError for no resample.

    >>> from diffprobe.analysis.statistics import mean_of
    >>> x = np.random.default_rng(0).normal(size=40)
    >>> resamples = PairedResamples(range(40), n_resamples=200)
    >>> one, other = resamples.of(mean_of(x + 1)), resamples.of(mean_of(x))
    >>> round(resamples.interval(one, other).low, 6)
    1.0
    """

    def __init__(self, clusters: Sequence[Hashable], *, n_resamples: int = 1000, seed: int = 0) -> None:
        check_settings(0.5, n_resamples)
        self._groups, self._n_samples = Groups.of(clusters), len(clusters)
        self._drawn = draws(self._groups, n_resamples, seed)

    def of(self, statistic: AnyStatistic) -> NDArray[np.float64]:
        """Return a statistic of all samples, then of each resample: shape (1 + resamples,), NaN where not defined.

        Raises: ConfigError for another number of samples; EmptyClass if it is not defined for all samples; NonFinite.
        """
        size = n_samples_of(statistic)
        if size is not None and size != self._n_samples:
            raise ConfigError(f"bootstrap: groups of {self._n_samples} samples for a statistic of {size}.")
        whole = evaluate(statistic, np.arange(self._n_samples, dtype=np.int64))
        return np.concatenate([[whole], resampled(statistic, self._groups, self._drawn)])

    def interval(
        self,
        one: NDArray[np.float64],
        other: NDArray[np.float64],
        *,
        level: float = 0.95,
        method: Method = "percentile",
    ) -> Interval:
        """Return the interval of one minus other, both as `of` returns them.

        Raises: ConfigError for a level outside (0, 1); EmptyClass if undefined in more than half of the resamples.
        """
        check_settings(level, len(self._drawn))
        difference = one - other
        low, high = ends(difference[1:], self._groups.n, level, method)
        return Interval(
            estimate=float(difference[0]), low=low, high=high, level=level, n_clusters=self._groups.n,
            n_resamples=len(self._drawn), n_undefined=int(np.isnan(difference).sum()), method=method,
        )  # fmt: skip
