"""Intervals against cases whose answer is known."""

import math

import numpy as np
import pytest

from diffprobe.analysis.statistics import bootstrap_interval
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


def test_faults_are_named():
    with pytest.raises(ConfigError, match="1 cluster in 3"):
        bootstrap_interval(lambda rows: 0.0, ["a", "a", "a"])
    with pytest.raises(ConfigError, match="level=1.5"):
        bootstrap_interval(lambda rows: 0.0, range(3), level=1.5)
    with pytest.raises(NonFinite):
        bootstrap_interval(lambda rows: float("nan"), range(3))
