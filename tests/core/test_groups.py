"""Groups are numbered, gathered and counted; too few of them are an error that says what still stands."""

import numpy as np
import pytest

from diffprobe.core.errors import ConfigError, TooFewGroups
from diffprobe.core.groups import Groups


def test_groups_are_numbered_in_the_order_of_first_occurrence() -> None:
    groups = Groups.of(["b", ("a", 1), "b", "c"])
    assert groups.ids.tolist() == [0, 1, 0, 2] and groups.n == 3
    assert [rows.tolist() for rows in groups.members()] == [[0, 2], [1], [3]]
    assert groups.sums(np.array([[1.0], [2.0], [4.0], [8.0]])).tolist() == [[5.0], [2.0], [8.0]]


def test_too_few_groups_are_named_with_what_still_stands() -> None:
    with pytest.raises(
        TooFewGroups, match=r"test of gender: 1 group in 3(.|\n)*estimate itself stands(.|\n)*one group"
    ):
        Groups.of("aaa", what="test of gender")
    with pytest.raises(ConfigError, match=r"2 groups in 3(.|\n)*at least 10"):
        Groups.of("aab", at_least=10)
    assert Groups.of("aaa", at_least=1).n == 1


def test_values_are_numbered_and_samples_without_one_stay_apart() -> None:
    groups = Groups.of_values(np.array([9, -1, 3, 9, -1, 3]))
    assert groups.ids.tolist() == [0, 1, 2, 0, 3, 2] and groups.n == 4
    assert Groups.of_values(np.zeros(0, dtype=np.int64)).n == 0
