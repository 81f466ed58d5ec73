"""Permutations keep the structure of groups."""

import math

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import Groups
from diffprobe.probes.group_permutation import GroupPermutation

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


def test_numbered_groups_do_as_named_ones():
    labels = np.array([0, 1, 1, 0, 0, 1, 1, 0])
    named = GroupPermutation(labels, FAMILY.tolist()).draw(5, np.random.default_rng(0))
    numbered = GroupPermutation(labels, Groups.of_values(FAMILY)).draw(5, np.random.default_rng(0))
    assert (named == numbered).all()


def test_arrangements_are_counted():
    assert GroupPermutation(np.arange(400) % 2, range(400)).n_distinct == pytest.approx(math.comb(400, 200), rel=1e-9)
    assert GroupPermutation(np.arange(4000) % 2, range(4000)).n_distinct == math.inf


def test_one_label_is_permuted_to_itself():
    permutation = GroupPermutation(np.zeros(3, dtype=int), range(3))
    assert permutation.n_distinct == 1 and (permutation.draw(4, np.random.default_rng(0)) == 0).all()
    empty = GroupPermutation(np.zeros(0, dtype=int), Groups.of_values(np.zeros(0, dtype=int)))
    assert empty.draw(2, np.random.default_rng(0)).shape == (2, 0)


def test_other_numbers_of_samples_are_refused():
    with pytest.raises(ConfigError, match="3 labels for groups of 2"):
        GroupPermutation(np.arange(3), range(2))
