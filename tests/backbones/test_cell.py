import pytest

from diffprobe.backbones.cell import CONDITIONS, Cell
from diffprobe.core.errors import ConfigError


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("pool", ["mean", "max", "none", "grid2", "tokens64"])
def test_a_name_read_back_is_the_cell(condition: str, pool: str) -> None:
    cell = Cell("up_blocks.1.attentions.0", 999, condition, pool)
    assert Cell.parse(cell.name) == cell
    assert str(cell) == cell.name == f"up_blocks.1.attentions.0@t999:{condition}:{pool}"


def test_a_readout_is_part_of_the_tap() -> None:
    cell = Cell.parse("up_blocks.1.attentions.0.transformer_blocks.0.attn2/probs@t261")
    assert cell.tap.endswith("attn2/probs") and Cell.parse(cell.name) == cell


def test_condition_and_pooling_may_be_left_out() -> None:
    assert Cell.parse("mid_block@t100") == Cell("mid_block", 100)
    assert Cell.parse("mid_block@t100:caption") == Cell("mid_block", 100, "caption", "mean")


@pytest.mark.parametrize("text", ["mid_block", "mid_block@100", "mid_block@t-1", "@t1", "mid_block@t1:", "a@b@t1"])
def test_what_is_no_cell_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="TAP@tTIMESTEP"):
        Cell.parse(text)


@pytest.mark.parametrize(
    ("text", "allowed"), [("x@t1:none", "empty, caption, prompt"), ("x@t1:empty:sum", "mean, max")]
)
def test_an_unknown_part_lists_what_there_is(text: str, allowed: str) -> None:
    with pytest.raises(ConfigError, match=allowed):
        Cell.parse(text)


def test_cells_sort_by_depth_of_name_then_time() -> None:
    assert sorted([Cell("b", 1), Cell("a", 20), Cell("a", 3)]) == [Cell("a", 3), Cell("a", 20), Cell("b", 1)]
