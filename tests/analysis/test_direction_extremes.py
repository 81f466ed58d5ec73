"""The two ends of a direction."""

import pytest
import torch

from diffprobe.analysis.direction_extremes import direction_extremes
from diffprobe.core.errors import ConfigError, NonFinite


def keys_of(samples):
    return [sample.key for sample in samples]


def test_ends_are_ordered_and_ties_go_by_key():
    ends = direction_extremes(torch.tensor([1.0, 5.0, 5.0, -3.0, -3.0, 0.0]), list("fbadce"), list("FBADCE"), n_each=2)
    assert keys_of(ends.positive) == ["a", "b"] and keys_of(ends.negative) == ["c", "d"]
    assert [sample.caption for sample in ends.positive] == ["A", "B"]
    assert ends.negative[0].projection == -3.0


def test_one_per_group_keeps_the_most_extreme_member():
    ends = direction_extremes(
        torch.tensor([9.0, 8.0, 7.0, -1.0, -2.0, -3.0]),
        list("abcdef"),
        list("abcdef"),
        n_each=2,
        group_by=["cat", "cat", "dog", "owl", "owl", "owl"],
    )
    assert keys_of(ends.positive) == ["a", "c"] and keys_of(ends.negative) == ["f"]


@pytest.mark.parametrize(("n_groups", "n_shown"), [(1, 1), (6, 3), (7, 4), (40, 8)])
def test_an_end_holds_no_more_than_half_of_the_groups(n_groups, n_shown):
    """Each group has a variant at both ends, as a drawing of a woman and a man has."""
    projections = torch.cat([torch.arange(n_groups) + 1.0, -torch.arange(n_groups) - 1.0])
    keys, groups = [f"k{i:02}" for i in range(2 * n_groups)], [f"base {i}" for i in range(n_groups)] * 2
    ends = direction_extremes(projections, keys, keys, n_each=8, group_by=groups)
    assert [sample.projection for sample in ends.positive] == [float(n_groups - i) for i in range(n_shown)]
    assert [sample.projection for sample in ends.negative] == [float(i - n_groups) for i in range(n_shown)]


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_no_sample_is_at_both_ends(n):
    keys = [f"k{i}" for i in range(n)]
    ends = direction_extremes(torch.zeros(n), keys, keys, n_each=8)
    assert sorted(keys_of(ends.positive) + keys_of(ends.negative)) == keys


def test_faults_are_named():
    with pytest.raises(ConfigError, match="captions: 1"):
        direction_extremes(torch.zeros(2), ["a", "b"], ["a"])
    with pytest.raises(ConfigError, match="n_each=0"):
        direction_extremes(torch.zeros(1), ["a"], ["a"], n_each=0)
    with pytest.raises(NonFinite):
        direction_extremes(torch.tensor([float("nan")]), ["a"], ["a"])
