"""z against permutations by group: equal to many draws, and to the Mann-Whitney z where images are independent."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm

from diffprobe.analysis.latents.group_scores import group_z
from diffprobe.analysis.latents.rank_scores import rank_gains
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups
from diffprobe.probes.group_permutation import GroupPermutation
from tests.analysis.latents.planted_codes import collected


def problem(group, labels, seed=0):
    generator = np.random.default_rng(seed)
    n = len(labels)
    dense = np.where(generator.random((n, 5)) < 0.4, generator.integers(1, 4, (n, 5)), 0).astype(np.float64)
    dense[:, 1] += 2 * (group % 3 == 0)  # differs between groups
    dense[:, 4] = 0
    codes = collected(dense, [f"{i:03d}" for i in range(n)], k=5)
    return codes, Groups.of_values(group)


def drawn_z(codes, labels, groups, n_classes, draws=20_000):
    """The same from permutations: the sum of mid-ranks of a class, centred by the latent's mean for its size."""
    gains = np.zeros((codes.n_latents, codes.n_images))
    gains[codes.latent, codes.row] = rank_gains(codes)
    centred = gains - gains.mean(1, keepdims=True)
    permuted = GroupPermutation(labels, groups).draw(draws, np.random.default_rng(1))
    found = np.zeros((codes.n_latents, n_classes))
    for c in range(n_classes):
        sums = centred @ (permuted == c).T
        spread = sums.std(1)
        found[:, c] = np.where(spread > 1e-9, (centred @ (labels == c) - sums.mean(1)) / np.maximum(spread, 1e-9), 0)
    return found


@pytest.mark.parametrize("kind", ["whole", "mixed", "both", "single"])
def test_z_is_that_of_many_permutations(kind):
    generator = np.random.default_rng(3)
    group = np.repeat(np.arange(20), generator.integers(1, 6, 20))
    of_group = generator.integers(0, 3, 20)[group]
    own = generator.integers(0, 3, len(group))
    labels = {"whole": of_group, "mixed": own, "both": np.where(group < 10, of_group, own), "single": own}[kind]
    if kind == "single":
        group = np.arange(len(group))
    codes, groups = problem(group, labels)
    found = group_z(codes, labels, groups, 3)
    np.testing.assert_allclose(found, drawn_z(codes, labels, groups, 3), atol=0.06)
    assert (found[4] == 0).all()


def test_independent_images_give_the_mann_whitney_z():
    labels = np.random.default_rng(5).integers(0, 3, 80)
    codes, groups = problem(np.arange(80), labels)
    dense = np.zeros((80, 5))
    dense[codes.row, codes.latent] = codes.value
    z = group_z(codes, labels, groups, 3)
    for c in range(3):
        for j in range(4):
            test = mannwhitneyu(dense[labels == c, j], dense[labels != c, j], use_continuity=False)
            assert 2 * norm.sf(abs(z[j, c])) == pytest.approx(test.pvalue, rel=1e-9)


def test_variants_of_one_drawing_are_not_independent_evidence():
    group = np.repeat(np.arange(12), 10)
    labels = (group < 4).astype(np.int64)
    codes = collected((group < 2).astype(np.float64)[:, None], [f"{i:03d}" for i in range(120)])
    alone = group_z(codes, labels, Groups.of_values(np.arange(120)), 2)[0, 1]
    by_group = group_z(codes, labels, Groups.of_values(group), 2)[0, 1]
    assert alone > 6 and by_group < 2.5


def test_a_sum_that_no_permutation_changes_is_0():
    codes, groups = problem(np.zeros(12, dtype=np.int64), np.zeros(12, dtype=np.int64))
    assert (group_z(codes, np.zeros(12, dtype=np.int64), groups, 2) == 0).all()
    with pytest.raises(ConfigError, match="1 groups|12 images"):
        group_z(codes, np.zeros(12, dtype=np.int64), Groups.of_values(np.arange(3)), 2)
