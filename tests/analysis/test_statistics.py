"""Intervals and tests against cases whose answer is known."""

import itertools
import math

import numpy as np
import pytest

from diffprobe.analysis.statistics import benjamini_hochberg, bootstrap_interval, permutation_p, permutation_test
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite


def mean_of(x):
    return lambda rows: float(x[rows].mean())


def test_bootstrap_of_a_mean_has_the_known_width():
    x = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(mean_of(x), range(400), n_resamples=2000)
    width = 2 * 1.96 * x.std() / math.sqrt(400)
    assert interval.estimate == x.mean() and interval.high - interval.low == pytest.approx(width, rel=0.1)
    assert interval.n_clusters == 400 and interval.n_undefined == 0


def test_copies_in_a_cluster_do_not_narrow_the_interval():
    x = np.random.default_rng(0).normal(size=50)
    copied, clusters = np.repeat(x, 20), np.repeat(np.arange(50), 20).tolist()
    alone = bootstrap_interval(mean_of(x), range(50))
    clustered = bootstrap_interval(mean_of(copied), clusters)
    naive = bootstrap_interval(mean_of(copied), range(1000))
    assert (clustered.low, clustered.high) == pytest.approx((alone.low, alone.high))
    assert naive.high - naive.low < 0.4 * (clustered.high - clustered.low)


def test_resamples_without_the_statistic_are_counted():
    def needs_first(rows):
        if not (rows == 0).any():
            raise EmptyClass("the first sample was not drawn.")
        return 1.0

    interval = bootstrap_interval(needs_first, range(20), n_resamples=500)
    assert interval.n_resamples == 500  # the undefined ones counted in
    assert interval.n_undefined / 500 == pytest.approx((1 - 1 / 20) ** 20, abs=0.08)

    def mostly_undefined(rows):
        if len(np.unique(rows)) < 20:
            raise EmptyClass("not all drawn.")
        return 1.0

    with pytest.raises(EmptyClass, match="resamples"):
        bootstrap_interval(mostly_undefined, range(20), n_resamples=50)


def test_p_is_uniform_under_the_null():
    generator = np.random.default_rng(1)
    labels = np.repeat([0, 1], 10)
    p = []
    for seed in range(200):
        x = generator.normal(size=20)
        p.append(permutation_test(lambda y, x=x: x[y == 1].mean(), labels, n_permutations=39, seed=seed).p)
    assert np.mean(np.array(p) <= 0.05) == pytest.approx(0.05, abs=0.035)


def test_p_cannot_fall_below_what_the_labels_allow():
    x = np.array([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    labels = [0, 0, 0, 1, 1, 1]
    result = permutation_test(lambda y: x[y == 1].mean(), labels, n_permutations=999)
    n_distinct = len(set(itertools.permutations(labels)))
    assert result.p_min == 1 / n_distinct == 1 / 20
    assert result.p == pytest.approx(1 / 20, abs=0.02)  # the true labeling is drawn again and counts against itself
    assert permutation_test(lambda y: x[y == 1].mean(), labels, n_permutations=9).p_min == 1 / 10


def test_blocks_hold_what_is_not_exchangeable():
    block = np.repeat(np.arange(10), 4)
    x = block * 10.0  # depends on the block only
    labels = np.array([int(i % 4 == 0) if b < 5 else int(i % 4 != 0) for i, b in enumerate(block)])
    free = permutation_test(lambda y: x[y == 1].mean(), labels, n_permutations=199)
    blocked = permutation_test(lambda y: x[y == 1].mean(), labels, n_permutations=199, blocks=block.tolist())
    assert free.p < 0.05 and blocked.p == 1.0


@pytest.mark.parametrize(("alternative", "p"), [("greater", 0.2), ("less", 1.0), ("two-sided", 0.4)])
def test_p_of_each_alternative(alternative, p):
    assert permutation_p(2.0, [-2.5, -1.0, 1.0, 1.9999], alternative) == p


def test_benjamini_hochberg_against_its_definition():
    p = np.random.default_rng(0).uniform(size=30) ** 2
    q = np.array(benjamini_hochberg(p.tolist()))
    for level in (0.01, 0.05, 0.2, 0.5):
        ordered = np.sort(p)
        passing = [i for i in range(30) if ordered[i] <= level * (i + 1) / 30]
        threshold = ordered[passing[-1]] if passing else -1.0
        assert ((q <= level) == (p <= threshold)).all()
    assert benjamini_hochberg([]) == []


def test_faults_are_named():
    with pytest.raises(ConfigError, match="1 cluster in 3"):
        bootstrap_interval(lambda rows: 0.0, ["a", "a", "a"])
    with pytest.raises(ConfigError, match="level=1.5"):
        bootstrap_interval(lambda rows: 0.0, range(3), level=1.5)
    with pytest.raises(NonFinite):
        bootstrap_interval(lambda rows: float("nan"), range(3))
    with pytest.raises(ConfigError, match="nothing to exchange"):
        permutation_test(lambda y: 0.0, [1, 1, 1])
    with pytest.raises(ConfigError, match="2 blocks"):
        permutation_test(lambda y: 0.0, [0, 1, 1], blocks=["a", "b"])
    with pytest.raises(ConfigError, match="n_permutations=1"):
        permutation_test(lambda y: 0.0, [0, 1], n_permutations=1)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        benjamini_hochberg([0.5, 1.1])
