"""The score of the best of many: chosen on one split, scored on another, and chosen again in each resample."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics.bootstrap import Interval, check_settings, draws, resampled
from diffprobe.analysis.statistics.forms import AnyStatistic, evaluate
from diffprobe.core.errors import ConfigError, EmptyClass, SplitLeak
from diffprobe.core.groups import Groups


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The chosen cell, its score on the other split, and how sure the choice is."""

    chosen: int
    """Position of the cell that is best on the selection split; the first of equal ones."""
    interval: Interval
    """Its score on test, with an interval that chooses anew in each resample; groups are those of test."""
    select_value: float
    """Its score on the selection split: the maximum over the cells, too good by about `optimism`."""
    optimism: float
    """Mean over resamples of what the best cell of a resample scores there above what it scores on all samples."""
    shares: tuple[float, ...]
    """Share of resamples in which each cell is the best; one number per cell."""


def selected_interval(
    select: Sequence[AnyStatistic],
    select_clusters: Sequence[Hashable],
    score: Sequence[AnyStatistic],
    score_clusters: Sequence[Hashable],
    *,
    higher_is_better: bool = True,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Selected:
    """Choose the best of many cells on one split and score it on another, with an interval that holds the choice.

    Each resample draws groups of both splits, chooses the best cell in the first and scores it in the second. The
    interval is of the score of what the choice yields, wider than that of the chosen cell alone where cells are close.
    It covers at least its level: with eight cells, 95 % covers 97 % where they differ and 99 % where they do not
    (simulated).

    Args:
        select: the statistic of each cell on the selection split (val).
        select_clusters: the group of each sample of that split.
        score: the statistic of each cell on the other split (test), in the same order.
        score_clusters: the group of each of its samples.
        higher_is_better, n_resamples, level, seed: as `bootstrap_interval`.

    Raises: TooFewGroups in either split; ConfigError for no cell or other numbers of cells; SplitLeak for a group in
        both splits, which would make the choice see what it is scored on; EmptyClass if no cell, or the chosen one, is
        defined in more than half of the resamples.
    """
    check_settings(level, n_resamples)
    if not select or len(select) != len(score):
        raise ConfigError(f"selection among {len(select)} cells, scored for {len(score)}: the same ones, at least 1.")
    both = sorted(map(str, set(select_clusters) & set(score_clusters)))
    if both:
        raise SplitLeak(
            f"selection: {len(both)} groups are in both splits, for example '{both[0]}'.",
            "the choice would see what it is scored on",
            fix="split by whole groups",
        )
    splits = []
    for statistics, clusters, offset in ((select, select_clusters, 0), (score, score_clusters, 1)):
        groups = Groups.of(clusters, what="selection")
        drawn = draws(groups, n_resamples, 2 * seed + offset)
        everyone = np.arange(len(clusters), dtype=np.int64)
        whole = np.array([evaluate(statistic, everyone) for statistic in statistics])
        splits.append((groups, whole, np.stack([resampled(statistic, groups, drawn) for statistic in statistics])))
    (_, on_val, val), (groups, on_test, test) = splits
    sign = 1.0 if higher_is_better else -1.0
    chosen = int(np.argmax(sign * on_val))
    usable = ~np.isnan(val).any(axis=0) & ~np.isnan(test).any(axis=0)
    n_undefined = n_resamples - int(usable.sum())
    if n_undefined * 2 > n_resamples:
        raise EmptyClass(
            f"selection: a cell is not defined in {n_undefined} of {n_resamples} resamples.",
            "the score of the chosen cell stands, without an interval",
        )
    val, test = val[:, usable], test[:, usable]
    best = np.argmax(sign * val, axis=0)
    columns = np.arange(val.shape[1])
    low, high = np.quantile(test[best, columns], [(1 - level) / 2, (1 + level) / 2])
    interval = Interval(
        estimate=float(on_test[chosen]), low=float(low), high=float(high), level=level, n_clusters=groups.n,
        n_resamples=n_resamples, n_undefined=n_undefined,
    )  # fmt: skip
    gain: NDArray[np.float64] = val[best, columns] - on_val[best]
    shares = np.bincount(best, minlength=len(select)) / len(best)
    return Selected(
        chosen=chosen, interval=interval, select_value=float(on_val[chosen]), optimism=float(gain.mean()),
        shares=tuple(shares.tolist()),
    )  # fmt: skip
