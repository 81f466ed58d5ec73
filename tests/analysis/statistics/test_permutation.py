"""Permutations keep the structure of groups; null distributions have quantile, p and smallest p."""

import math

import numpy as np
import pytest

from diffprobe.analysis.statistics import GroupPermutation, Null, permutation_null
from diffprobe.core.errors import ConfigError, EmptyClass, TooFewGroups

FAMILY = np.array([0, 0, 0, 1, 1, 2, 3, 3])


def drawn(labels, clusters, n=200):
    return GroupPermutation(np.array(labels), list(clusters)).draw(n, np.random.default_rng(0))


def test_a_label_of_whole_groups_moves_between_groups():
    permutation = GroupPermutation(np.array([0, 0, 0, 1, 1, 1, 0, 0]), FAMILY.tolist())
    found = permutation.draw(200, np.random.default_rng(0))
    for family in range(4):
        assert (found[:, FAMILY == family] == found[:, FAMILY == family][:, :1]).all()
    assert (found[:, [0, 3, 5, 6]].sum(1) == 2).all()  # as many groups of each label
    assert len(np.unique(found, axis=0)) == 6 == round(permutation.n_distinct)
    assert (permutation.n_between, permutation.n_within) == (4, 0)


def test_a_label_that_varies_moves_within_groups():
    labels = np.array([0, 1, 2, 0, 1, 1, 0, 1])
    found = drawn(labels[FAMILY != 2], FAMILY[FAMILY != 2])
    for family in (0, 1, 3):
        inside = found[:, FAMILY[FAMILY != 2] == family]
        assert (np.sort(inside, axis=1) == np.sort(labels[FAMILY == family])).all()
    assert len(np.unique(found, axis=0)) == 6 * 2 * 2


def test_mixed_groups_move_both_ways():
    permutation = GroupPermutation(np.array([0, 1, 1, 0, 0, 1, 1, 0]), FAMILY.tolist())
    found = permutation.draw(500, np.random.default_rng(0))
    assert (permutation.n_between, permutation.n_within) == (2, 2) and permutation.n_distinct == pytest.approx(12)
    assert (found[:, :3].sum(1) == 2).all() and (found[:, 6:].sum(1) == 1).all()
    assert (found[:, 3] == found[:, 4]).all() and (found[:, 3] != found[:, 5]).all()
    assert len(np.unique(found, axis=0)) == 12


def test_single_samples_are_permuted_as_they_are():
    labels = np.array([0, 1, 1, 2])
    found = drawn(labels, range(4), n=600)
    assert (np.sort(found, axis=1) == labels).all() and len(np.unique(found, axis=0)) == 12
    share = (found == labels).mean(0)
    assert share == pytest.approx([0.25, 0.5, 0.5, 0.25], abs=0.07)


def test_a_null_has_p_quantile_and_the_smallest_p():
    null = Null(observed=3.0, values=np.array([1.0, 2.0, 3.0, 4.0]), n_permutations=5, n_distinct=100.0, n_between=0,
                n_within=2)  # fmt: skip
    assert null.p == (1 + 2) / (1 + 4) and null.smallest_p == 1 / 5 and null.n_undefined == 1
    assert null.quantile == pytest.approx(2.5 / 4) and null.mean == 2.5 and null.percentiles(0.0, 1.0) == [1.0, 4.0]
    lower = Null(observed=0.0, values=null.values, n_permutations=4, n_distinct=3.0, n_between=2, n_within=0,
                 higher_is_better=False)  # fmt: skip
    assert lower.p == lower.smallest_p == 1 / 3  # three different permutations allow no less
    assert GroupPermutation(np.arange(400) % 2, range(400)).n_distinct == pytest.approx(math.comb(400, 200), rel=1e-9)
    assert GroupPermutation(np.arange(4000) % 2, range(4000)).n_distinct == math.inf


def test_a_null_is_of_the_statistic_and_repeats_with_its_seed():
    labels, clusters = np.arange(60) // 3 % 2, np.arange(60) // 3
    nulls = [permutation_null(lambda y: (y == labels).mean(1), labels, clusters, seed=seed) for seed in (0, 0, 1)]
    assert nulls[0].observed == 1 and nulls[0].p == nulls[0].smallest_p == 1 / 1001
    assert nulls[0].mean == pytest.approx(0.5, abs=0.02)
    assert (nulls[0].values == nulls[1].values).all() and (nulls[0].values != nulls[2].values).any()
    spread = math.sqrt(1 / 19) / 2  # of 20 groups, not of 60 samples
    assert nulls[0].values.std() == pytest.approx(spread, rel=0.1)


def test_what_has_no_null_is_named():
    same = lambda y: np.zeros(len(y))  # noqa: E731
    with pytest.raises(TooFewGroups, match=r"1 group in 3(.|\n)*estimate itself stands"):
        permutation_null(same, np.zeros(3, dtype=int), [0, 0, 0])
    with pytest.raises(EmptyClass, match=r"3 groups with 1 label(.|\n)*without a null(.|\n)*two classes"):
        permutation_null(same, np.zeros(3, dtype=int), range(3))
    with pytest.raises(EmptyClass, match="true labels"):
        permutation_null(lambda y: np.full(len(y), np.nan), np.arange(3), range(3))
    with pytest.raises(EmptyClass, match=r"draws(.|\n)*without a null"):
        permutation_null(lambda y: np.where((y == np.arange(9)).all(1), 1.0, np.nan), np.arange(9), range(9))
    with pytest.raises(ConfigError, match="3 labels for groups of 2"):
        permutation_null(same, np.arange(3), range(2))
    with pytest.raises(ConfigError, match="n_permutations=0"):
        permutation_null(same, np.arange(3), range(3), n_permutations=0)
