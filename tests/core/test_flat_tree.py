"""Nested configurations as dotted keys."""

from diffprobe.core.flat_tree import flatten


def test_blocks_become_dotted_keys_and_empty_ones_stay() -> None:
    assert flatten({"a": {"b": {"c": 1}, "d": [2]}, "e": {}}) == {"a.b.c": 1, "a.d": [2], "e": {}}
    assert flatten({}) == {}
