"""Training order by (seed, epoch), equal shares; evaluation exactly once."""

import pytest
import torch

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.features.samplers import RowOrder, balanced_order, eval_order, train_order


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


@pytest.mark.parametrize("sizes", [(1, 5, 18), (4, 4), (1, 1, 1, 40), (7,)])
@pytest.mark.parametrize("epoch", [0, 3])
def test_a_balanced_epoch_has_each_value_equally_often(sizes, epoch):
    values = torch.cat([torch.full((n,), 2 * i) for i, n in enumerate(sizes)] + [torch.full((3,), -1)])
    values = values[torch.randperm(len(values), generator=torch.Generator().manual_seed(1))]
    order = balanced_order(values, seed=0, epoch=epoch)
    assert len(order) == sum(sizes) and (values[order] >= 0).all()
    counts = values[order].bincount(minlength=2 * len(sizes))[::2]
    assert counts.max() - counts.min() <= 1
    for value in range(len(sizes)):
        times = order[values[order] == 2 * value].bincount(minlength=len(values))[values == 2 * value]
        assert times.max() - times.min() <= 1  # rare rows are repeated evenly


def test_a_balanced_order_is_fixed_by_seed_epoch_and_values():
    values = torch.tensor([0] * 20 + [1] * 4)
    first = balanced_order(values, seed=1, epoch=2)
    assert first.equal(balanced_order(values, seed=1, epoch=2))
    assert not first.equal(balanced_order(values, seed=1, epoch=3))
    assert not first.equal(balanced_order(values, seed=2, epoch=2))
    halves = [balanced_order(values, seed=1, epoch=2, rank=rank, world_size=2) for rank in range(2)]
    assert torch.stack(halves, dim=1).flatten().equal(first)
    seen = torch.cat([balanced_order(values, seed=1, epoch=epoch) for epoch in range(8)])
    assert set(seen.tolist()) == set(range(24))  # rows of a frequent value take turns
    with pytest.raises(EmptyClass):
        balanced_order(torch.tensor([-1, -1]), seed=0, epoch=0)
