"""Texts in aligned columns."""

from diffprobe.core.columns import aligned


def test_columns_are_as_wide_as_their_widest_cell_and_lines_have_no_end_of_spaces() -> None:
    assert aligned([["a", "bb", ""], ["ccc", "d", "e"]]) == ["a    bb", "ccc  d   e"]
    assert aligned([["a", "1"], ["bb", "10"]], [False, True]) == ["a    1", "bb  10"]
    assert aligned([[]]) == [""]
