"""Intervals against cases whose answer is known."""

import math

import numpy as np
import pytest
import torch

from diffprobe.analysis.statistics import SumStatistic, area_of, bootstrap_interval, mean_of, paired_interval
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, TooFewGroups, UnknownName
from diffprobe.metrics.auroc import auroc


def positions(x):
    return lambda rows: float(x[rows].mean())


def test_bootstrap_of_a_mean_has_the_known_width():
    x = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(positions(x), range(400), n_resamples=2000)
    width = 2 * 1.96 * x.std() / math.sqrt(400)
    assert interval.estimate == x.mean() and interval.high - interval.low == pytest.approx(width, rel=0.1)
    assert interval.n_clusters == 400 and interval.n_undefined == 0


def test_copies_in_a_cluster_do_not_narrow_the_interval():
    x = np.random.default_rng(0).normal(size=50)
    copied, clusters = np.repeat(x, 20), np.repeat(np.arange(50), 20).tolist()
    alone = bootstrap_interval(positions(x), range(50))
    clustered = bootstrap_interval(positions(copied), clusters)
    naive = bootstrap_interval(positions(copied), range(1000))
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
    with pytest.raises(ConfigError, match="1 group in 3"):
        bootstrap_interval(lambda rows: 0.0, ["a", "a", "a"])
    with pytest.raises(ConfigError, match="level=1.5"):
        bootstrap_interval(lambda rows: 0.0, range(3), level=1.5)
    with pytest.raises(NonFinite):
        bootstrap_interval(lambda rows: float("nan"), range(3))


CLUSTERS = np.random.default_rng(5).integers(40, size=200).tolist()


def test_all_resamples_at_once_give_what_one_by_one_gives():
    rng = np.random.default_rng(1)
    x, w, positive = rng.normal(size=200).round(1), rng.uniform(1, 2, size=200), rng.random(200) < 0.4
    areas = lambda rows: float(auroc(torch.from_numpy(x[rows])[:, None], torch.from_numpy(positive[rows])))  # noqa: E731
    both = [
        (mean_of(x), positions(x)),
        (mean_of(x, w), lambda rows: float((w * x)[rows].sum() / w[rows].sum())),
        (area_of(x, positive), areas),
    ]
    for fast, slow in both:
        one, other = (bootstrap_interval(form, CLUSTERS, n_resamples=100, seed=3) for form in (fast, slow))
        assert (one.estimate, one.low, one.high) == pytest.approx((other.estimate, other.low, other.high), abs=1e-12)
        assert one.n_clusters == other.n_clusters == len(set(CLUSTERS))


def test_the_resamples_are_those_of_a_loop_with_the_same_seed():
    x, generator, found = np.arange(12.0), np.random.default_rng(7), []
    for _ in range(100):
        found.append(x.reshape(4, 3)[generator.integers(4, size=4)].mean())
    interval = bootstrap_interval(mean_of(x), np.arange(12) // 3, n_resamples=100, seed=7)
    assert (interval.low, interval.high) == pytest.approx(np.quantile(found, [0.025, 0.975]))


def test_what_two_entries_share_cancels_in_a_paired_interval():
    rng = np.random.default_rng(0)
    shared, gain = rng.normal(size=200), 0.1 + 0.05 * rng.normal(size=200)
    forms = (mean_of(shared + gain), mean_of(shared)), (positions(shared + gain), mean_of(shared))
    paired, mixed = (paired_interval(one, other, CLUSTERS) for one, other in forms)
    alone = bootstrap_interval(mean_of(shared), CLUSTERS)
    assert paired.estimate == pytest.approx(gain.mean()) and paired.low > 0
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)
    assert (mixed.low, mixed.high) == pytest.approx((paired.low, paired.high))
    curves = [area_of(shared + noise * rng.normal(size=200), shared > 0) for noise in (0.1, 2.0)]
    assert paired_interval(*curves, CLUSTERS).low > 0


def test_few_groups_widen_an_expanded_interval():
    x, few = np.random.default_rng(0).normal(size=80), np.arange(80) // 10
    narrow, wide = (bootstrap_interval(mean_of(x), few, method=method) for method in ("percentile", "expanded"))
    assert narrow.has_few_groups and wide.method == "expanded"
    assert wide.high - wide.low == pytest.approx(1.29 * (narrow.high - narrow.low), rel=0.1)  # sqrt(8/7) 2.365 / 1.96
    many = [bootstrap_interval(mean_of(x), range(80), method=method) for method in ("percentile", "expanded")]
    assert many[1].high - many[1].low == pytest.approx(many[0].high - many[0].low, rel=0.06)
    assert not many[0].has_few_groups


def test_faults_of_groups_and_forms_are_named():
    x = np.arange(6.0)
    with pytest.raises(TooFewGroups, match=r"2 groups in 6(.|\n)*at least 5(.|\n)*estimate itself stands"):
        bootstrap_interval(mean_of(x), [0, 0, 0, 1, 1, 1], at_least=5)
    with pytest.raises(ConfigError, match="5 samples for a statistic of 6"):
        bootstrap_interval(mean_of(x), range(5))
    with pytest.raises(ConfigError, match="6 and 4 samples"):
        paired_interval(mean_of(x), mean_of(x[:4]), range(6))
    with pytest.raises(UnknownName, match=r"'bca'(.|\n)*expanded"):
        bootstrap_interval(mean_of(x), range(6), method="bca")
    with pytest.raises(NonFinite, match="sample 2"):
        mean_of(np.array([0.0, 1.0, np.inf]))
    with pytest.raises(EmptyClass, match="not defined for these samples"):
        bootstrap_interval(mean_of(x, np.zeros(6)), range(6))
    with pytest.raises(EmptyClass, match=r"of 50 resamples(.|\n)*without an interval"):
        parts = np.eye(6)  # defined where each sample was drawn
        every = SumStatistic(parts=parts, value=lambda sums: np.where((sums > 0).all(1), 1.0, np.nan))
        bootstrap_interval(every, range(6), n_resamples=50)
