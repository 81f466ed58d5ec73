"""Intervals of certificates: values by hand, and coverage by simulation."""

import numpy as np
import pytest

from diffprobe.analysis.certification.intervals import (
    jackknife_interval,
    rank_correlation,
    rank_correlation_cap,
    rank_correlation_interval,
    share_interval,
)
from diffprobe.core.errors import ConfigError, EmptyClass


def test_the_jackknife_of_a_mean_is_the_interval_of_student() -> None:
    from scipy import stats

    x = np.random.default_rng(0).normal(size=12)
    low, high = jackknife_interval(x.mean(), (x.sum() - x) / 11, 0.9)
    expected = stats.t.interval(0.9, 11, loc=x.mean(), scale=stats.sem(x))
    assert (low, high) == pytest.approx(expected)


def test_a_jackknife_needs_three_samples() -> None:
    with pytest.raises(EmptyClass, match="2 samples"):
        jackknife_interval(0.0, np.zeros(2), 0.95)


def test_the_exact_interval_of_a_share_is_that_of_scipy() -> None:
    from scipy import stats

    for successes in (0, 3, 24):
        expected = stats.binomtest(successes, 24).proportion_ci(0.95, method="exact")
        assert share_interval(successes, 24, 0.95) == pytest.approx((expected.low, expected.high))


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="5 of 4"):
        share_interval(5, 4, 0.95)


def test_the_rank_correlation_is_that_of_scipy() -> None:
    from scipy import stats

    generator = np.random.default_rng(1)
    a, b = generator.integers(4, size=30).astype(float), generator.normal(size=30)
    assert rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
    assert rank_correlation(np.ones(3), np.arange(3.0)) == 0


def test_ties_cap_the_rank_correlation() -> None:
    truth = np.array([0.1, 0.5, 0.5, 0.5, 0.9])
    cap = rank_correlation_cap(truth)
    best = max(rank_correlation(np.argsort(np.random.default_rng(i).permutation(5)) * 1.0, truth) for i in range(500))
    assert best == pytest.approx(cap) and cap < 1


def test_the_interval_of_a_rank_correlation_covers() -> None:
    """Of bivariate normal samples with n = 24 and 8; the truth is 6 / pi * arcsin(r / 2)."""
    generator, r = np.random.default_rng(2), 0.8
    truth = 6 / np.pi * np.arcsin(r / 2)
    for n, least in ((24, 0.92), (8, 0.90)):
        covered = 0
        for _ in range(600):
            x = generator.normal(size=n)
            y = r * x + np.sqrt(1 - r * r) * generator.normal(size=n)
            low, high = rank_correlation_interval(rank_correlation(x, y), n, 0.95)
            covered += low <= truth <= high
        assert covered / 600 >= least


def test_the_interval_of_a_rank_correlation_needs_four_samples() -> None:
    with pytest.raises(EmptyClass, match="there are 3"):
        rank_correlation_interval(0.5, 3, 0.95)
