"""Training order by (seed, epoch), equal shares; evaluation exactly once."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.features.samplers import RowOrder, eval_order, train_order


@pytest.mark.parametrize(("n", "world"), [(1, 1), (10, 1), (10, 3), (11, 2), (2, 5)])
def test_ranks_get_equal_shares_that_cover_all_rows(n, world):
    shares = [train_order(n, seed=0, epoch=0, rank=rank, world_size=world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    rows = torch.cat(shares).tolist()
    assert set(rows) == set(range(n))
    assert len(rows) - n < world


def test_order_is_fixed_by_seed_and_epoch():
    first = train_order(50, seed=1, epoch=2)
    assert torch.equal(first, train_order(50, seed=1, epoch=2))
    assert not torch.equal(first, train_order(50, seed=1, epoch=3))
    assert not torch.equal(first, train_order(50, seed=2, epoch=2))
    assert sorted(first.tolist()) == list(range(50))


def test_a_global_batch_is_the_same_for_one_and_two_ranks():
    whole = train_order(24, seed=0, epoch=1)
    halves = [train_order(24, seed=0, epoch=1, rank=rank, world_size=2) for rank in range(2)]
    for step in range(6):
        together = torch.cat([half[2 * step : 2 * step + 2] for half in halves])
        assert sorted(together.tolist()) == sorted(whole[4 * step : 4 * step + 4].tolist())


@pytest.mark.parametrize(("n", "world"), [(7, 2), (8, 3), (3, 3)])
def test_evaluation_gives_each_row_exactly_once(n, world):
    rows = torch.cat([eval_order(n, rank=rank, world_size=world) for rank in range(world)])
    assert sorted(rows.tolist()) == list(range(n))


def test_more_ranks_than_samples_are_refused():
    with pytest.raises(ConfigError, match="2 samples .* 3 processes"):
        eval_order(2, rank=0, world_size=3)


@pytest.mark.parametrize(("n", "world"), [(1, 1), (10, 1), (10, 3), (11, 2), (2, 5)])
def test_the_order_of_rows_is_that_of_samples_cut_into_batches(n, world):
    for rank in range(world):
        place = {"seed": 4, "epoch": 2, "rank": rank, "world_size": world}
        order, expected = RowOrder(n, **place), train_order(n, **place)
        batches = [order.take(start, start + 3) for start in range(0, len(expected), 3)]
        assert torch.cat(batches).equal(expected)
