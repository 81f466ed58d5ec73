"""Cells by their short names."""

import pytest

from diffprobe.core.errors import UnknownName
from diffprobe.features.cell_selection import choose_cell, choose_cells


def test_cells_may_be_named_short_where_that_is_unambiguous():
    cells = ("mid_block@t10:empty:mean", "mid_block@t100:empty:mean")
    assert choose_cells(["mid_block@t10"], cells) == cells[:1]
    assert choose_cells(None, cells) == cells
    with pytest.raises(KeyError, match="nearest"):
        choose_cells(["mid_blok@t10:empty:mean"], cells)


def test_a_tap_stands_for_all_its_timesteps():
    cells = [f"mid_block@t{t}:{condition}:mean" for condition in ("empty", "caption") for t in (10, 90)]
    others = ["mid_block.x@t10:empty:mean", "up_blocks.0@t10:empty:mean"]
    both = tuple(cells[:2])
    for name in ("mid_block", "mid_block@t*", "mid_block@t*:empty", "mid_block@t*:empty:mean"):
        assert choose_cells([name], [*both, *others]) == both
    assert choose_cells(["mid_block@t*:caption"], [*cells, *others]) == tuple(cells[2:])
    assert choose_cells(["mid_block", "mid_block@t10"], both) == both  # each once
    with pytest.raises(UnknownName, match=r"'mid_block' is ambiguous"):
        choose_cells(["mid_block"], cells)
    for name in ("mid_bloc", "mid_block@t*:emp", "mid_block@t*:empty:max"):
        with pytest.raises(UnknownName, match="unknown cell"):
            choose_cells([name], [*both, *others])


def test_one_cell_has_a_unique_short_name():
    cells = ("mid_block@t10:empty:mean", "mid_block@t100:empty:mean", "up_blocks.0@t10:empty:mean")
    assert choose_cell("mid_block@t10", cells) == choose_cell(cells[0], cells) == cells[0]
    assert choose_cell("up_blocks.0", cells) == cells[2]
    with pytest.raises(UnknownName, match="'mid_block' is ambiguous") as caught:
        choose_cell("mid_block", cells)
    assert cells[0] in str(caught.value) and cells[1] in str(caught.value)
