"""Sign-flip tests: against scipy, exact enumeration, and p uniform under the hypothesis."""

import numpy as np
import pytest
from scipy import stats

from diffprobe.analysis.statistics import sign_flip_nulls, smallest_sign_flip_p
from diffprobe.core.errors import ConfigError, NonFinite


def test_p_is_that_of_scipy_where_all_patterns_are_enumerated() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, size=(5, 10))
    found = sign_flip_nulls(values)
    for one, null in zip(values, found, strict=True):
        expected = stats.permutation_test(
            (one,), lambda x, axis: np.abs(np.mean(x, axis=axis)), permutation_type="samples", alternative="greater",
            n_resamples=np.inf, vectorized=True,
        )  # fmt: skip
        assert null.p == pytest.approx(expected.pvalue, abs=1e-12)
        assert null.smallest_p == pytest.approx(2 / 2**10)


def test_drawn_patterns_agree_with_all_patterns() -> None:
    values = np.random.default_rng(1).normal(0.3, 1, size=(3, 14))
    exact = [null.p for null in sign_flip_nulls(values, n_permutations=9999)]
    drawn = [null.p for null in sign_flip_nulls(values, n_permutations=4000)]
    assert np.allclose(exact, drawn, atol=0.03)


def test_p_is_uniform_if_differences_are_symmetric() -> None:
    """Differences of unequal variance and without a normal distribution: the test is exact, not asymptotic."""
    rng = np.random.default_rng(2)
    values = rng.standard_t(2, size=(600, 20)) * rng.uniform(0.1, 5, size=20)
    p = np.array([null.p for null in sign_flip_nulls(values, n_permutations=999)])
    assert stats.kstest(p, "uniform").pvalue > 0.01
    shifted = np.array([null.p for null in sign_flip_nulls(values + 2.0, n_permutations=999)])
    assert (shifted < 0.05).mean() > 0.3


def test_the_smallest_p_is_stated() -> None:
    assert smallest_sign_flip_p(4) == 0.125
    (null,) = sign_flip_nulls(np.ones((1, 4)))
    assert null.p == null.smallest_p == 0.125
    (null,) = sign_flip_nulls(np.ones((1, 30)), n_permutations=99)
    assert null.p == null.smallest_p == 0.01


def test_a_sign_or_an_order_of_all_pairs_does_not_matter() -> None:
    values = np.random.default_rng(3).normal(size=(1, 9))
    (one,), (other,), (turned,) = (sign_flip_nulls(v) for v in (values, -values, values[:, ::-1]))
    assert one.p == other.p == turned.p


def test_bad_input_is_refused() -> None:
    with pytest.raises(ConfigError, match="0"):
        sign_flip_nulls(np.zeros((3, 0)))
    with pytest.raises(NonFinite, match="set 1"):
        sign_flip_nulls(np.array([[1.0], [np.nan]]))
