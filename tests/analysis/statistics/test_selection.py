"""The best of many cells is chosen on val, scored on test, and chosen again in each resample."""

import numpy as np
import pytest

from diffprobe.analysis.statistics import bootstrap_interval, mean_of, selected_interval
from diffprobe.core.errors import ConfigError, EmptyClass, SplitLeak, TooFewGroups

RNG = np.random.default_rng(0)
VAL, TEST = ([f"{split}{i // 2}" for i in range(120)] for split in ("v", "t"))


def cells(means):
    return [mean_of(mean + RNG.normal(size=120)) for mean in means]


def test_the_cell_chosen_on_val_is_scored_on_test():
    val, test = cells([0, 2, 0]), cells([0, 1, 5])
    found = selected_interval(val, VAL, test, TEST, n_resamples=400)
    alone = bootstrap_interval(test[1], TEST, n_resamples=400, seed=1)
    assert found.chosen == 1 and found.shares == (0, 1, 0)  # not the best on test
    assert (found.interval.estimate, found.interval.low, found.interval.high) == (alone.estimate, alone.low, alone.high)
    lowest = selected_interval(val, VAL, test, TEST, n_resamples=400, higher_is_better=False)
    assert lowest.chosen in (0, 2) and lowest.select_value < 0.5


def test_close_cells_widen_the_interval_and_show_optimism():
    val, test = cells([0] * 12), cells([0] * 12)
    found = selected_interval(val, VAL, test, TEST, n_resamples=400)
    alone = bootstrap_interval(test[found.chosen], TEST, n_resamples=400)
    assert found.interval.high - found.interval.low > 1.1 * (alone.high - alone.low)
    assert found.select_value > 0 and found.optimism > 0.03 and max(found.shares) < 0.95
    assert found.interval.n_clusters == 60
    worst = selected_interval(val, VAL, test, TEST, n_resamples=400, higher_is_better=False)
    assert worst.optimism < -0.03


def test_faults_are_named():
    val, test = cells([0, 1]), cells([0, 1])
    with pytest.raises(SplitLeak, match=r"60 groups are in both splits, for example 'v0'(.|\n)*whole groups"):
        selected_interval(val, VAL, test, VAL)
    with pytest.raises(ConfigError, match="2 cells, scored for 1"):
        selected_interval(val, VAL, test[:1], TEST)
    with pytest.raises(TooFewGroups, match="selection: 1 group in 120"):
        selected_interval(val, VAL, test, ["t"] * 120)
    rare = mean_of(np.zeros(120), (np.arange(120) == 0).astype(float))
    only = selected_interval([rare], VAL, test[:1], TEST, n_resamples=50)
    assert only.interval.n_undefined > 5
    with pytest.raises(EmptyClass, match=r"a cell is not defined in .* of 50"):
        selected_interval([rare], VAL, [lambda rows: _undefined(rows)], TEST, n_resamples=50)


def _undefined(rows):
    if (rows != np.arange(120)).any():
        raise EmptyClass("only of all samples.")
    return 0.0
