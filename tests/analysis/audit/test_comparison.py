"""Agreement of two numbers per subject, and amplification."""

import numpy as np
import pytest
from scipy import stats

from diffprobe.analysis.audit.comparison import amplification, rank_agreement
from diffprobe.core.errors import ConfigError


def test_the_rank_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=40)
    other = one + rng.normal(size=40)
    found = rank_agreement(one, other, n_resamples=300, n_permutations=499)
    assert found.interval.estimate == pytest.approx(stats.spearmanr(one, other).statistic)
    assert found.interval.low < found.interval.estimate < found.interval.high
    assert found.null.p == pytest.approx(stats.spearmanr(one, other).pvalue, abs=0.02)


@pytest.mark.slow
def test_its_interval_covers_and_its_p_is_uniform() -> None:
    """80 subjects with a known rank correlation (of a bivariate normal distribution), and without one."""
    rng, hits, p = np.random.default_rng(1), 0, []
    truth = 6 / np.pi * np.arcsin(0.6 / 2)
    for seed in range(60):
        one, noise = rng.normal(size=80), rng.normal(size=80)
        found = rank_agreement(one, 0.6 * one + 0.8 * noise, n_resamples=150, n_permutations=1, seed=seed).interval
        hits += found.low <= truth <= found.high
        p.append(rank_agreement(one, noise, n_resamples=2, n_permutations=199, seed=seed).null.p)
    assert hits / 60 >= 0.95 - 3 * (0.95 * 0.05 / 60) ** 0.5
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_amplification_is_rate_minus_reference() -> None:
    rate, reference = np.array([0.9, 0.6, 0.2, 0.4]), np.array([0.7, 0.7, 0.5, 0.6])
    found = amplification(rate, rate - 0.1, rate + 0.1, reference)
    assert np.allclose(found.difference, [0.2, -0.1, -0.3, -0.2])
    assert np.allclose(found.low, found.difference - 0.1) and np.allclose(found.high, found.difference + 0.1)
    assert found.away.tolist() == [True, False, True, False]  # the last one is on the other side: not amplified
    assert amplification(rate, None, None, reference).low is None


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="0..1"):
        amplification(np.array([0.5]), None, None, np.array([1.5]))
    with pytest.raises(ConfigError, match="at least 4"):
        rank_agreement(np.arange(3.0), np.arange(3.0))
