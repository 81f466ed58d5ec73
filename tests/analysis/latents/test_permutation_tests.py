"""Sequential permutation tests: equal to the plain ones, calibrated, and honest about groups."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from diffprobe.analysis.latents.permutation_tests import (
    PermutationSettings,
    SparseWeights,
    adjusted,
    permuted_p,
)
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups

SETTINGS = PermutationSettings(most=2000, enough=10_000, tail=False)  # every test has all permutations


def weights_of(dense):
    test, image = np.nonzero(dense)
    return SparseWeights(
        test=test, image=image, weight=dense[test, image], n_tests=dense.shape[0], n_images=dense.shape[1]
    )


def sums(found, *_):
    return found


def test_independent_images_give_fishers_exact_p():
    generator = np.random.default_rng(0)
    labels = (generator.random(60) < 0.3).astype(np.int64)
    dense = (generator.random((8, 60)) < 0.2 + 0.4 * labels).astype(np.float64)
    found = permuted_p(
        weights_of(dense), np.ones(8, dtype=np.int64), labels, Groups.of_values(np.full(60, -1)), sums, SETTINGS
    )
    exact = hypergeom.sf(dense @ labels - 1, 60, labels.sum(), dense.sum(1))
    np.testing.assert_allclose(found.p, exact, atol=4 * np.sqrt(exact.max() / 2000))
    assert found.smallest == pytest.approx(1 / 2001)


def test_stopping_early_changes_large_p_little_and_small_p_not_at_all():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 3, 90)
    dense = np.where(generator.random((30, 90)) < 0.2, generator.random((30, 90)), 0.0)
    dense[0] = labels == 0
    classes, groups = generator.integers(0, 3, 30), Groups.of_values(np.full(90, -1))
    classes[0] = 0
    plain = permuted_p(weights_of(dense), classes, labels, groups, sums, SETTINGS)
    early = permuted_p(
        weights_of(dense), classes, labels, groups, sums, PermutationSettings(most=2000, enough=50, tail=False)
    )
    assert early.p[0] == plain.p[0] == plain.smallest
    assert np.abs(early.p - plain.p).max() < 0.15
    assert not np.array_equal(early.p, plain.p)


def test_p_is_uniform_or_larger_without_an_effect():
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 2, 100)
    dense = np.where(generator.random((2000, 100)) < 0.2, generator.random((2000, 100)), 0.0)
    found = permuted_p(
        weights_of(dense), np.ones(2000, dtype=np.int64), labels, Groups.of_values(np.full(100, -1)), sums,
        PermutationSettings(most=1000),
    )  # fmt: skip
    for level in (0.01, 0.05, 0.2):
        assert (found.p <= level).mean() <= level + 4 * np.sqrt(level / 2000)


@pytest.mark.parametrize(("n_class", "n_active"), [(20, 4), (20, 12), (60, 12), (60, 40), (100, 60), (180, 60)])
def test_p_beyond_the_permutations_is_near_fishers(n_class, n_active):
    """A latent active on images of one class alone, or nearly: p far below what 2,000 permutations count."""
    n = 200
    labels = (np.arange(n) < n_class).astype(np.int64)
    wrong = n_active // 10
    active = np.r_[np.arange(n_active - wrong), n - 1 - np.arange(wrong)]
    dense = np.zeros((1, n))
    dense[0, active] = 1
    exact = hypergeom.sf(n_active - wrong - 1, n, n_class, n_active)
    settings = PermutationSettings(most=2000)
    found = permuted_p(
        weights_of(dense), np.ones(1, dtype=np.int64), labels, Groups.of_values(np.full(n, -1)), sums, settings
    )
    if exact > 2e-3:
        assert found.p[0] == pytest.approx(exact, rel=1)
    else:
        assert exact / 3 < found.p[0] < max(exact**0.6, 1e-3)  # hardly too small, and small enough to be found


def test_small_p_are_as_rare_as_they_claim_to_be():
    """With 200 permutations p of .001 cannot be counted; of 20,000 tests without an effect about 20 have it."""
    generator = np.random.default_rng(6)
    labels = (generator.random(100) < 0.3).astype(np.int64)
    dense = np.where(generator.random((20_000, 100)) < 0.2, generator.random((20_000, 100)) + 0.5, 0.0)
    found = permuted_p(
        weights_of(dense), np.ones(20_000, dtype=np.int64), labels, Groups.of_values(np.full(100, -1)), sums,
        PermutationSettings(most=200),
    )  # fmt: skip
    assert 0 < (found.p <= 0.001).mean() < 0.002 and (found.p <= 1e-5).mean() < 2e-4


def test_variants_of_one_drawing_count_once():
    """A latent that is active on the ten variants of two drawings of a class has a p of two drawings, not of twenty."""
    group = np.repeat(np.arange(12), 10)
    labels = (group < 4).astype(np.int64)
    dense = (group < 2).astype(np.float64)[None]
    one = np.ones(1, dtype=np.int64)
    by_image = permuted_p(weights_of(dense), one, labels, Groups.of_values(np.full(120, -1)), sums, SETTINGS)
    by_group = permuted_p(weights_of(dense), one, labels, Groups.of_values(group), sums, SETTINGS)
    assert by_image.p[0] < 0.001
    assert by_group.p[0] == pytest.approx(4 * 3 / (12 * 11), abs=0.03)  # both drawings among the four of the class


def test_labels_without_another_order_have_no_p():
    dense = np.ones((2, 6))
    one = np.ones(2, dtype=np.int64)
    found = permuted_p(weights_of(dense), one, np.ones(6, dtype=np.int64), Groups.of_values(np.full(6, -1)), sums,
                       SETTINGS)  # fmt: skip
    assert np.isnan(found.p).all() and "alike" in found.why and found.smallest == 1
    assert np.isnan(permuted_p(weights_of(dense), one, np.array([0, 1] * 3), Groups.of_values(np.arange(6)), sums,
                               None).p).all()  # fmt: skip


def test_a_test_without_a_class_has_no_p():
    labels, dense = np.array([0, 1, 0, 1, 0, 1]), np.eye(6)[:2]
    found = permuted_p(weights_of(dense), np.array([-1, 1]), labels, Groups.of_values(np.full(6, -1)), sums, SETTINGS)
    assert np.isnan(found.p[0]) and found.p[1] == pytest.approx(0.5, abs=0.05)


def test_adjusted_counts_only_what_was_tested():
    assert adjusted(np.array([0.01, np.nan, 0.04])).tolist()[::2] == [0.02, 0.04]
    assert np.isnan(adjusted(np.array([np.nan]))).all()


def test_bad_input_is_refused():
    with pytest.raises(ConfigError, match="5 labels and 6 groups for 6 images"):
        permuted_p(weights_of(np.eye(6)), np.zeros(6, dtype=np.int64), np.zeros(5, dtype=np.int64),
                   Groups.of_values(np.arange(6)), sums, SETTINGS)  # fmt: skip
    with pytest.raises(ConfigError, match="most=5"):
        PermutationSettings(most=5)
