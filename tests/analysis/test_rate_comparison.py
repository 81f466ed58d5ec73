import numpy as np
import pytest
from scipy.stats import linregress, spearmanr

from diffprobe.analysis.rate_comparison import compare_rates, measures, spearman_cap
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.shards.scenes.factors import rates
from diffprobe.shards.scenes.world import load_world

PLANTED = rates(load_world(), 0)


def test_measures_are_those_of_scipy():
    measured = np.round(np.random.default_rng(0).uniform(size=(5, 24)), 1)  # with ties
    found = measures(PLANTED, measured)
    for row, values in enumerate(measured):
        assert found["spearman"][row] == pytest.approx(spearmanr(PLANTED, values).statistic)
        assert found["slope"][row] == pytest.approx(linregress(PLANTED, values).slope)
        assert found["bias"][row] == pytest.approx(np.mean(values - PLANTED))
        assert found["max_error"][row] == pytest.approx(max(abs(values - PLANTED)))


def test_the_cap_is_reached_by_the_right_order_and_not_exceeded():
    generator = np.random.default_rng(0)
    cap = spearman_cap(PLANTED)
    assert 0.95 < cap < 1
    noisy = PLANTED + generator.uniform(0, 1e-6, size=(200, 24))
    assert measures(PLANTED, noisy)["spearman"] == pytest.approx(np.full(200, cap))


def test_own_rates_are_told_from_those_of_the_sibling():
    generator = np.random.default_rng(0)
    sibling = rates(load_world(), 1)
    draws = generator.binomial(100, PLANTED, size=(500, 24)) / 100
    own, other = (compare_rates(planted, draws[0], draws, n_permutations=300) for planted in (PLANTED, sibling))
    assert own.values["spearman"] > 0.95 and own.controls["spearman"].p < 0.01
    assert own.intervals["slope"][0] < 1 < own.intervals["slope"][1] and abs(own.values["bias"]) < 0.03
    assert other.values["spearman"] < 0.5 and other.values["max_error"] > 0.5
    assert own.values["max_error"] < own.controls["max_error"].percentiles(0.05)[0]
    assert "bias" not in own.controls


@pytest.mark.slow
def test_nulls_are_uniform_for_rates_that_follow_nothing():
    """Over 200 simulations, 5 % of p are at most 0.05, within Monte-Carlo error (1.5 points)."""
    generator = np.random.default_rng(0)
    planted = np.repeat([0.1, 0.5, 0.9], 4)
    small = []
    for seed in range(200):
        measured = generator.uniform(size=12)
        found = compare_rates(planted, measured, measured[None], n_permutations=99, seed=seed)
        small.append(found.controls["spearman"].p <= 0.05)
    assert abs(np.mean(small) - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 200)


def test_wrong_shapes_are_refused():
    with pytest.raises(ConfigError, match="2 planted"):
        compare_rates(np.array([0.1, 0.2]), np.array([0.1, 0.2]), np.ones((3, 2)))
    with pytest.raises(ConfigError, match=r"\(3,\)"):
        compare_rates(PLANTED, np.ones(3), np.ones((3, 24)))
    with pytest.raises(EmptyClass):
        compare_rates(np.full(4, 0.5), np.ones(4), np.ones((3, 4)))
