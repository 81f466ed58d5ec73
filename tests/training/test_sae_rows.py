import pytest
import torch

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.row_layout import joint_width
from diffprobe.probes.sae.types import SINGLE_PROCESS
from diffprobe.training.sae_rows import ChosenRows, ShuffleBuffer, check_one_tap, row_ranks, rows_of


def batch_of(**features):
    named = {name.replace("__", "@").replace("_as_", ":empty:"): values for name, values in features.items()}
    n = len(next(iter(named.values())))
    return FeatureBatch(named, [f"s/{i}" for i in range(n)], torch.zeros(n, dtype=torch.int64), {})


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_a_pooled_cell_is_its_own_rows():
    x = noise(3, 5)
    rows = rows_of(batch_of(mid__t1_as_mean=x), ["mid@t1:empty:mean"])
    assert rows.x is x and rows.sample.tolist() == [0, 1, 2]
    assert not rows.group.any() and not rows.number.any()


def test_places_of_a_map_are_rows_in_reading_order():
    maps = noise(2, 5, 3, 4)
    rows = rows_of(batch_of(mid__t1_as_none=maps), ["mid@t1:empty:none"])
    assert rows.x.shape == (24, 5)
    for row, sample, number in zip(rows.x, rows.sample.tolist(), rows.number.tolist(), strict=True):
        assert row.equal(maps[sample, :, number // 4, number % 4])


def test_tokens_and_draws_are_rows():
    tokens = noise(2, 6, 5)
    rows = rows_of(batch_of(mid__t1_as_tokens6=tokens), ["mid@t1:empty:tokens6"])
    assert rows.x.equal(tokens.reshape(12, 5)) and rows.number.tolist() == [*range(6), *range(6)]
    drawn = noise(2, 3, 6, 5)  # as many axes as a map has: the cell's name tells them apart
    rows = rows_of(batch_of(mid__t1_as_tokens6=drawn), ["mid@t1:empty:tokens6"])
    assert rows.x.shape == (36, 5) and rows.x[18 + 2 * 6 + 4].equal(drawn[1, 2, 4]) and int(rows.sample[17]) == 0
    pooled = noise(2, 3, 5)
    assert rows_of(batch_of(mid__t1_as_mean=pooled), ["mid@t1:empty:mean"]).x.equal(pooled.reshape(6, 5))
    maps = noise(2, 3, 5, 4, 4)
    rows = rows_of(batch_of(mid__t1_as_none=maps), ["mid@t1:empty:none"])
    assert rows.x.shape == (96, 5) and rows.x[48 + 2 * 16 + 7].equal(maps[1, 2, :, 1, 3])


def test_several_timesteps_stand_behind_each_other():
    one, two = noise(2, 5, 2, 2), noise(2, 5, 2, 2) + 1
    cells = ["mid@t1:empty:none", "mid@t9:empty:none"]
    rows = rows_of(batch_of(mid__t1_as_none=one, mid__t9_as_none=two), cells)
    assert rows.group.tolist() == [0] * 8 + [1] * 8 and rows.sample.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2
    assert rows.x[8 + 4 + 3].equal(two[1, :, 1, 1]) and int(rows.number[8 + 4 + 3]) == 7
    both = set(zip(rows.sample.tolist(), rows.number.tolist(), strict=True))
    assert len(both) == 16  # a row of the set has one address


def test_cells_without_common_rows_are_refused():
    batch = batch_of(mid__t1_as_mean=noise(2, 5), mid__t9_as_mean=noise(2, 4))
    with pytest.raises(ConfigError, match="width"):
        rows_of(batch, list(batch.features))
    with pytest.raises(ConfigError, match="width") as caught:
        joint_width({"a": 3, "b": 4})
    assert "a: 3" in str(caught.value)
    with pytest.raises(ConfigError, match="one tap") as caught:
        check_one_tap(["mid@t1:empty:mean", "up@t1:empty:mean"])
    assert "features.taps: mid, up" in str(caught.value) and "probe.cell=mid@t*:empty:mean" in str(caught.value)
    with pytest.raises(ConfigError, match="one condition"):
        check_one_tap(["mid@t1:empty:mean", "mid@t1:caption:mean"])
    with pytest.raises(ConfigError, match="each cell once"):
        check_one_tap(["mid@t1", "mid@t1"])
    with pytest.raises(ConfigError, match="pool=tokens"):
        rows_of(batch_of(mid__t1_as_tokens4=noise(2, 5)), ["mid@t1:empty:tokens4"])


def test_ranks_are_the_seeds_where_a_sample_is_one_row_and_else_differ_by_row():
    seeds = torch.tensor([5, 7, 7])
    assert row_ranks(seeds, torch.zeros(3, dtype=torch.int64)).equal(seeds)
    ranks = row_ranks(torch.zeros(4, dtype=torch.int64), torch.arange(4))
    # published SplitMix64 from state 0: its first outputs, without the sign bit
    assert [hex(r) for r in ranks[1:3].tolist()] == ["0x6220a8397b1dcdaf", "0x6e789e6aa1b965f4"]
    many = row_ranks(torch.full((10_000,), 3), torch.arange(10_000))
    assert len(many.unique()) == 10_000 and int(many.min()) >= 0
    assert abs(float(many.double().mean()) / 2**62 - 1) < 0.05


def test_chosen_rows_of_maps_come_from_all_places_in_any_order_of_batches():
    maps, cell = noise(6, 2, 4, 4), "mid@t1:empty:none"

    def choose(order):
        chosen = ChosenRows(20, seed=0)
        for i in order:
            batch = batch_of(mid__t1_as_none=maps[i : i + 1])
            batch.keys = [f"s/{i}"]
            rows = rows_of(batch, [cell])
            chosen.update(rows.x, batch.keys, rows)
        return chosen.compute(collective=SINGLE_PROCESS)

    found = choose(range(6))
    assert found.equal(choose([4, 1, 0, 5, 3, 2])) and found.shape == (20, 2)
    flat = maps.movedim(1, -1).reshape(96, 2)
    places = (found[:, None] == flat).all(2).nonzero()[:, 1]
    assert len(places.unique()) == 20 and len((places // 16).unique()) > 3


def test_the_buffer_exchanges_rows_and_loses_none():
    buffer = ShuffleBuffer(20, 1, seed=0)
    buffer.fill(torch.arange(20.0)[:, None])
    given = []
    for start in (20, 27, 34):
        given.append(buffer.exchange(torch.arange(start, start + 7.0)[:, None]))
    out = torch.cat(given)
    assert torch.cat([out, buffer.held]).flatten().sort().values.equal(torch.arange(41.0))
    assert len(given[0]) == 7 and (out < 20).sum() >= 8  # most of what is given was held


def made(rank=0, world=1, size=12):
    buffer = ShuffleBuffer(size, 2, seed=3)
    buffer.place(rank, world)
    return buffer


def test_the_buffer_continues_from_its_state():
    batches = [noise(4, 2) + i for i in range(6)]
    whole, cut, second = made(), made(), made()
    for buffer in (whole, cut):
        buffer.fill(noise(12, 2))
    expected = [whole.exchange(x) for x in batches]
    for x in batches[:3]:
        cut.exchange(x)
    second.restore(cut.shares(lambda values: values))
    assert all(second.exchange(x).equal(y) for x, y in zip(batches[3:], expected[3:], strict=True))
    empty = made()
    empty.restore(made().shares(lambda values: values))
    assert not empty.filled and not list(cut.state_dict())


def test_processes_share_the_rows_of_a_buffer_and_find_their_shares_again(monkeypatch):
    monkeypatch.setattr("diffprobe.training.sae_rows.GATHERED_ROWS", 4)  # in two parts
    first = torch.arange(24.0).view(12, 2)
    buffers = [made(rank, 2) for rank in range(2)]
    for buffer in buffers:
        buffer.fill(first)
    assert torch.cat([buffer.held for buffer in buffers]).sort(0).values.equal(first)
    x = 100 + torch.arange(24.0).view(12, 2)
    given = [buffer.exchange(part) for buffer, part in zip(buffers, x.chunk(2), strict=True)]
    everything = torch.cat([*given, *(buffer.held for buffer in buffers)])
    assert everything.sort(0).values.equal(torch.cat([first, x]))
    drawn_alike = [(part[:, 0] >= 100).tolist() for part in given]
    assert drawn_alike[0] != drawn_alike[1]  # each process by its own seed
    parts = [[buffer.held.split(4)[i] for buffer in buffers] for i in range(2)]
    for rank in range(2):
        gathered = iter(parts)
        state = buffers[rank].shares(lambda values, gathered=gathered: torch.cat(next(gathered)))
        if rank == 0:
            saved = state
    assert len(state["held"]) == 0  # one process writes the file
    for rank in range(2):
        again = made(rank, 2)
        again.restore(saved)
        assert again.held.equal(buffers[rank].held) and again.drawn == 1
    with pytest.raises(ConfigError, match="2 processes; this run has 1") as caught:
        made().restore(saved)
    assert "trainer.devices=2" in str(caught.value)
    with pytest.raises(ConfigError, match=r"\[12, 2\]"):
        made(0, 2, size=14).restore(saved)


def test_a_buffer_moves_with_its_module():
    buffer = made()
    buffer.fill(noise(12, 2))
    assert torch.nn.Sequential(buffer).double()[0].held.dtype == torch.float64
    assert not list(buffer.buffers())  # DistributedDataParallel would copy one process's rows over all others


def test_a_buffer_that_cannot_be_filled_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        ShuffleBuffer(0, 2, seed=0)
    with pytest.raises(ConfigError, match="9 rows; the training set has 4") as caught:
        ShuffleBuffer(9, 2, seed=0).fill(noise(4, 2))
    assert "probe.params.row_buffer=4" in str(caught.value)
    with pytest.raises(ConfigError, match="12 rows .* 5 processes") as caught:
        made(0, 5)
    assert "probe.params.row_buffer=15" in str(caught.value)
    with pytest.raises(RunFailed, match="before `fill`"):
        ShuffleBuffer(9, 2, seed=0).exchange(noise(4, 2))
