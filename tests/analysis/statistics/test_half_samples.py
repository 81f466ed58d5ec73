"""Half-sample intervals: width against the known standard error, groups, coverage where a bootstrap has a bias."""

import numpy as np
import pytest
from numpy.typing import NDArray

from diffprobe.analysis.statistics import bootstrap_interval, half_sample_interval
from diffprobe.core.errors import ConfigError, NonFinite, TooFewGroups
from diffprobe.metrics.cluster_agreement import cluster_agreement


def test_its_width_is_that_of_the_standard_error() -> None:
    x = np.random.default_rng(0).normal(size=400)
    found = half_sample_interval(lambda rows: float(x[rows].mean()), range(400), n_resamples=2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)
    assert found.estimate == x.mean() and found.n_clusters == 400


def test_repeats_of_one_sample_are_one_group() -> None:
    x = np.random.default_rng(0).normal(size=100)
    one = half_sample_interval(lambda rows: float(x[rows].mean()), range(100))
    repeated, names = np.repeat(x, 3), np.repeat(np.arange(100), 3)
    other = half_sample_interval(lambda rows: float(repeated[rows].mean()), names.tolist())
    assert (other.low, other.high) == pytest.approx((one.low, one.high))


def test_independent_partitions_have_zero_in_their_interval_and_not_in_a_bootstrap() -> None:
    rng = np.random.default_rng(0)
    clusters, labels = rng.integers(30, size=600), rng.integers(24, size=600).astype(str)

    def agreement(rows: NDArray[np.int64]) -> float:
        return cluster_agreement(clusters[rows].tolist(), labels[rows].tolist())["ami"]

    found = half_sample_interval(agreement, range(600), n_resamples=60)
    assert found.low < 0 < found.high
    assert bootstrap_interval(agreement, range(600), n_resamples=60).low > 0.05  # repeats count as agreement


def test_bad_input_is_refused() -> None:
    with pytest.raises(TooFewGroups):
        half_sample_interval(lambda rows: 0.0, [0, 1, 2])
    with pytest.raises(ConfigError, match="level"):
        half_sample_interval(lambda rows: 0.0, range(9), level=1.0)
    with pytest.raises(NonFinite):
        half_sample_interval(lambda rows: float("nan"), range(9))


def test_an_odd_number_of_groups_has_the_same_width() -> None:
    x = np.random.default_rng(1).normal(size=11)
    found = half_sample_interval(lambda rows: float(x[rows].mean()), range(11), n_resamples=4000)
    spread = (found.high - found.low) / 2
    assert spread == pytest.approx(1.96 * x.std(ddof=1) / 11**0.5, rel=0.2)
