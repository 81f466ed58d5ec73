"""Nested labelled sets, and a shuffle of their truth that keeps nothing in its group."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.labelled_sets import exchanged_truth, labelled_images


def test_labelled_sets_are_nested_and_keep_groups_together() -> None:
    groups = [str(i // 3) for i in range(30)]
    largest = labelled_images(groups, 30, seed=1)
    assert sorted(largest) == list(range(30)) and labelled_images(groups, 7, seed=1) == largest[:7]
    assert len({groups[i] for i in largest[:6]}) == 2
    assert labelled_images(groups, 7, seed=2) != largest[:7]
    assert labelled_images(groups, 7, seed=1, draw=1) != largest[:7]


@settings(max_examples=200, deadline=None)
@given(groups=st.lists(st.sampled_from("abcdefgh"), max_size=24), seed=st.integers(0, 1000))
def test_no_truth_stays_in_its_group_and_each_is_used_once(groups: list[str], seed: int) -> None:
    if groups and 2 * max(map(groups.count, groups)) > len(groups):
        with pytest.raises(ConfigError, match=f"of {len(groups)} labelled images"):
            exchanged_truth(groups, seed=seed)
        return
    found = exchanged_truth(groups, seed=seed)
    assert sorted(found) == list(range(len(groups)))
    assert all(groups[i] != groups[other] for i, other in enumerate(found))


def test_the_shuffle_is_drawn_for_each_number_of_images() -> None:
    groups = [str(i) for i in range(16)]
    one, other = exchanged_truth(groups, seed=0), exchanged_truth(groups, seed=1)
    assert one != other and one == exchanged_truth(groups, seed=0)
    assert exchanged_truth(groups[:8], seed=0) != one[:8]
