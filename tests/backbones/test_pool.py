import pytest
import torch

from diffprobe.backbones.pool import add_rows, check_size, make_pool, pooled_width, token_places
from diffprobe.core.errors import ConfigError


def test_poolings_of_a_map_that_can_be_read_off() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]], [[-1.0, -1.0], [-1.0, 0.0]]]])
    assert make_pool("mean")(x, "a").tolist() == [[3.0, -0.75]]
    assert make_pool("max")(x, "a").tolist() == [[6.0, 0.0]]
    assert torch.equal(make_pool("none")(x, "a"), x)


def test_low_precision_is_averaged_in_float32() -> None:
    x = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    x[0, 0, 0, 0] = 257 - 1  # 4095 ones and one 256: no bfloat16 sum could hold it
    assert make_pool("mean")(x, "a").item() == pytest.approx((4095 + 256) / 4096, abs=1e-6)


def test_a_kept_map_is_a_copy() -> None:
    x = torch.zeros(1, 1, 2, 2)
    kept = make_pool("none")(x, "a")
    x += 1
    assert float(kept.sum()) == 0


def test_a_grid_averages_parts_row_by_row_within_a_channel() -> None:
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    parts = make_pool("grid2")(x, ["a"])
    assert parts.tolist() == [[2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]]
    assert pooled_width("grid2", 2) == 8 and pooled_width("tokens3", 2) == 2


def test_places_depend_on_seed_and_key_and_nothing_else() -> None:
    x = torch.randn(2, 3, 4, 4)
    both = make_pool("tokens5", seed=1)(x, ["a", "b"])
    assert both.shape == (2, 5, 3)
    assert torch.equal(make_pool("tokens5", seed=1)(x[1:], ["b"]), both[1:])
    places = token_places(1, "b", 16, 5)
    assert torch.equal(both[1], x[1].flatten(1).T[places])
    assert token_places(1, "b", 16, 5).tolist() != token_places(2, "b", 16, 5).tolist()
    assert token_places(1, "b", 16, 16).tolist() == list(range(16))


def test_the_memory_of_places_is_small() -> None:
    n_bytes = token_places(0, "a", 64 * 64, 64 * 64).untyped_storage().nbytes()
    assert n_bytes * token_places.cache_info().maxsize <= 2**28  # type: ignore[operator]


@pytest.mark.parametrize("pool", ["grid5", "tokens17"])
def test_more_places_than_there_are_is_refused(pool: str) -> None:
    check_size("grid4", "mid_block", (4, 4))
    with pytest.raises(ConfigError, match="at most grid4, tokens16"):
        check_size(pool, "mid_block", (4, 4))


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 12])
def test_rows_that_come_round_are_summed_draw_by_draw(rows: int) -> None:
    values = torch.arange(12.0)[:, None]  # three draws of four rows
    total = torch.zeros(4, 1)
    for start in range(0, 12, rows):
        add_rows(total, values[start : start + rows], start)
    assert total[:, 0].tolist() == [12.0, 15.0, 18.0, 21.0]


def test_an_unknown_pooling_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="mean, max, none"):
        make_pool("sum")
