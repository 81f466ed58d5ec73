"""Boards, and the rows and targets that are read for them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diffprobe.benchmarks.leaderboard_ground import BOARDS, Board, as_rows, read_ground
from diffprobe.core.errors import ConfigError


@pytest.fixture
def board(tiny_sd: Path) -> Board:
    return Board(
        name="tiny", backbone=str(tiny_sd), cell="conv_in@t500:empty:none", factors=("texture",), pointing=(), n_fit=4,
        n_train=6, n_test=5, resolution=32, target_tap="up_blocks.1",
    )  # fmt: skip


def test_places_become_rows_in_the_order_of_the_map() -> None:
    maps = np.arange(2 * 3 * 2 * 2, dtype=np.float32).reshape(2, 3, 2, 2)
    assert as_rows(maps)[1].tolist() == maps[0, :, 0, 1].tolist() and as_rows(maps).shape == (8, 3)
    assert as_rows(maps[:, :, 0, 0]).shape == (2, 3)


@pytest.mark.slow
def test_the_target_has_a_row_for_each_of_the_input_of_the_same_images(board: Board) -> None:
    found = read_ground(board, with_target=True)
    other = read_ground(replace(board, cell="up_blocks.1@t500:empty:none"))
    target = found.target_of("transcoder")
    assert target is not None and found.target_of("topk") is None and read_ground(board).target is None
    assert target.rows.tap == "up_blocks.1" and target.rows.rows.equal(other.rows)
    assert np.array_equal(target.test, other.samples.test) and len(target.rows.rows) == len(found.rows)


@pytest.mark.slow
def test_a_target_with_other_maps_and_no_images_are_refused(board: Board) -> None:
    with pytest.raises(ConfigError, match="do not pair"):
        read_ground(replace(board, target_tap="mid_block"), with_target=True)
    with pytest.raises(ConfigError, match="n=0 is out of range"):
        read_ground(replace(board, n_fit=0))


def test_shipped_boards_have_their_own_factors_and_a_target_beside_their_cell() -> None:
    assert BOARDS["emoji"].factors == ("style", "skin_tone", "label") and BOARDS["emoji"].data == "emoji"
    assert {board.target_cell for board in BOARDS.values()} == {"up_blocks.2@t200:empty:none"}
