"""How far rates of groups follow planted ones: Spearman with its cap, slope, bias, maximum error."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics.permutation import permutation_null
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.null_distribution import Null

Floats = NDArray[np.float64]

MEASURES = ("spearman", "slope", "bias", "max_error")
"""Names of the measures, in this order."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RateComparison:
    """Measured against planted rates.

    Attributes:
        values: measure -> its value.
        intervals: measure -> ends of its interval over the draws of the measured rates. The maximum error has none: its
            draws are larger than itself, since they vary the rates once more.
        controls: measure -> its distribution over permutations of the groups; the bias has none, since they keep it.
        spearman_cap: the largest Spearman correlation of measured rates without ties, since planted ones tie.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    controls: dict[str, Null]
    spearman_cap: float


def compare_rates(
    planted: Floats, measured: Floats, draws: Floats, *, level: float = 0.95, n_permutations: int = 2000, seed: int = 0
) -> RateComparison:
    """Compare measured rates with planted ones.

    Spearman's correlation uses mean ranks of ties; the slope is that of a least-squares line of measured on planted
    rates; the bias is the mean of measured minus planted; the maximum error is the largest absolute difference.

    Args:
        planted: known rate of each group, float64 (groups,).
        measured: float64 (groups,).
        draws: of the measured rates, float64 (resamples, groups), for intervals.
        level: nominal coverage.
        n_permutations: permutations of the groups.
        seed: of the permutations.

    Raises: ConfigError for fewer than 3 groups or other shapes; EmptyClass if all planted rates are equal.
    """
    n = len(planted)
    if n < 3 or measured.shape != (n,) or draws.ndim != 2 or draws.shape[1] != n:
        raise ConfigError(f"{n} planted rates need as many measured ones, at least 3.",
                          f"given: {measured.shape}, draws {draws.shape}")  # fmt: skip
    if np.ptp(planted) == 0:
        raise EmptyClass("all planted rates are equal, so nothing can follow them.")
    values = measures(planted, measured[None])
    of_draws = measures(planted, draws)
    tails = [(1 - level) / 2, (1 + level) / 2]
    intervals = {}
    for name in MEASURES[:-1]:
        defined = of_draws[name][~np.isnan(of_draws[name])]
        if len(defined) * 2 >= len(draws):
            low, high = np.quantile(defined, tails)
            intervals[name] = (float(low), float(high))
    levels, codes = np.unique(planted, return_inverse=True)
    controls = {}
    if not np.isnan(values["spearman"][0]):
        for name in ("spearman", "slope", "max_error"):

            def statistic(labels: NDArray[np.int64], name: str = name) -> Floats:
                rows = [measures(row, measured[None])[name] for row in levels[labels]]
                return np.concatenate(rows)

            controls[name] = permutation_null(
                statistic, codes.astype(np.int64), [str(group) for group in range(n)], n_permutations=n_permutations,
                seed=seed, higher_is_better=name != "max_error",
            )  # fmt: skip
    return RateComparison(
        values={name: float(found[0]) for name, found in values.items()}, intervals=intervals, controls=controls,
        spearman_cap=spearman_cap(planted),
    )  # fmt: skip


def measures(planted: Floats, measured: Floats) -> dict[str, Floats]:
    """Return each measure of rows of measured rates, float64 (rows,); NaN for the Spearman of equal rates.

    Args:
        planted: float64 (groups,).
        measured: float64 (rows, groups).
    """
    ranks, own = _ranks(measured), _ranks(planted[None])[0]
    centred, own = ranks - ranks.mean(1, keepdims=True), own - own.mean()
    scale = np.sqrt((centred**2).sum(1) * (own**2).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        spearman = np.where(scale > 0, centred @ own / scale, np.nan)
    from_mean = planted - planted.mean()
    errors = measured - planted
    return {
        "spearman": spearman,
        "slope": measured @ from_mean / (from_mean**2).sum(),
        "bias": errors.mean(1),
        "max_error": np.abs(errors).max(1),
    }


def spearman_cap(planted: Sequence[float] | Floats) -> float:
    """Return the Spearman correlation of planted rates with the best ranking that has no ties.

    >>> round(spearman_cap([0.1, 0.5, 0.5, 0.9]), 3)
    0.949
    """
    rates = np.asarray(planted, dtype=np.float64)
    best = np.empty(len(rates))
    best[np.argsort(rates, kind="stable")] = np.arange(len(rates))
    return float(measures(rates, best[None])["spearman"][0])


def _ranks(rows: Floats) -> Floats:
    """Return the mean rank of each value within its row, float64, from 0."""
    less = (rows[:, None, :] < rows[:, :, None]).sum(2)
    equal = (rows[:, None, :] == rows[:, :, None]).sum(2)
    return np.asarray(less + (equal - 1) / 2, dtype=np.float64)
