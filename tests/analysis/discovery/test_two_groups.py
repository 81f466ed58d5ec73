"""Two groups along a component."""

import numpy as np
import pytest
from sklearn.mixture import GaussianMixture

from diffprobe.analysis.discovery.two_groups import two_groups


def mixture(share: float, gap: float, n: int = 600, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    has = generator.random(n) < share
    x = generator.normal(size=n) + gap * has
    return (x - x.mean()) / x.std(), has


@pytest.mark.parametrize("share", [0.03, 0.2, 0.5, 0.8])
def test_planted_groups_are_found(share):
    x, has = mixture(share, 6.0)
    (found,) = two_groups(x[:, None])
    assert found.are_apart() and found.separation == pytest.approx(6, rel=0.25)
    smaller = has if has.mean() <= 0.5 else ~has
    assert (found.smaller == smaller).mean() > 0.99
    assert found.frequency == pytest.approx(smaller.mean(), abs=0.01)
    assert found.is_positive == (has.mean() <= 0.5)
    assert found.distinctiveness > 0.95 and found.rarity == found.distinctiveness * (1 - found.frequency)


def test_it_agrees_with_scikit_learn():
    x, _ = mixture(0.3, 4.0)
    (found,) = two_groups(x[:, None])
    one, two = (GaussianMixture(k, n_init=5, tol=1e-8, max_iter=500, random_state=0).fit(x[:, None]) for k in (1, 2))
    assert found.evidence == pytest.approx(one.bic(x[:, None]) - two.bic(x[:, None]), abs=0.5)


@pytest.mark.slow
def test_normal_numbers_have_no_groups():
    x = np.random.default_rng(0).normal(size=(400, 60))
    assert sum(one.are_apart() for one in two_groups(x / x.std(0))) <= 1


def test_groups_that_overlap_or_are_tiny_are_not_apart():
    near, _ = mixture(0.5, 1.5)
    assert not two_groups(near[:, None])[0].are_apart()
    outliers = np.r_[np.random.default_rng(0).normal(size=400), [12.0, 12.5]]
    assert not two_groups(outliers[:, None])[0].are_apart()


def test_the_sign_only_turns_the_groups():
    x, _ = mixture(0.2, 5.0)
    one, other = two_groups(np.column_stack([x, -x]))
    assert one.is_positive and not other.is_positive
    np.testing.assert_array_equal(one.smaller, other.smaller)
    assert one.evidence == pytest.approx(other.evidence, abs=1e-3)
