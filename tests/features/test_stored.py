"""Stored features: random access to mapped files, no backbone, refused before a run starts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError, StoreMismatch
from diffprobe.features.batch import FeatureTable, RowBatch
from diffprobe.features.live import LiveFeatures
from diffprobe.features.placement import place_tables
from diffprobe.features.stored import RowLoader, StoredFeatures, StoredLoader, StoredRows
from diffprobe.training.sae_rows import rows_of


def test_mapped_and_in_memory_rows_are_the_same(both):
    _, stored = both
    tables = list(stored.store.iter_shards("train"))
    assert len(tables) == 3
    memory, mapped = StoredRows(place_tables(tables, "memory", split="train")), StoredRows(tables)
    assert len(mapped.tables) == 3 and len(memory.tables) == 1 and mapped.n == memory.n
    assert memory.keys == mapped.keys
    rows = torch.randperm(mapped.n, generator=torch.Generator().manual_seed(0))
    one, two = memory.take(rows), mapped.take(rows)
    assert one.keys == two.keys
    assert torch.equal(one.label, two.label)
    assert all(torch.equal(one.features[cell], two.features[cell]) for cell in one.features)


def test_stored_features_of_other_settings_stop_a_run_before_it_starts(both, shared, make_trainer, probe_class):
    cell = "mid_block@t20:empty:mean"
    probe = probe_class(cell, 8, 3)
    with pytest.raises(StoreMismatch, match="seed: store 0, .* 7"):
        make_trainer().fit(probe, StoredFeatures(*shared(features_seed=7)))


@pytest.mark.parametrize("mode", ["memory", "mapped", "device"])
@pytest.mark.parametrize("shuffle", ["samples", "rows"])
def test_batches_are_the_same_wherever_a_split_is_kept(both, shared, mode, shuffle):
    def batches(mode):
        source = StoredFeatures(*shared(features_placement=mode, features_shuffle=shuffle), seed=3)
        cells = list(source.widths)[:2]
        loader = source.loader("train", shuffle=True, epoch=1)
        assert type(loader) is (RowLoader if shuffle == "rows" else StoredLoader)
        yield from ([batch.keys, *rows_of(batch, cells)] for batch in loader)
        yield from ([batch.keys, *rows_of(batch, cells)] for batch in source.loader("val", shuffle=False))

    for one, other in zip(batches("auto"), batches(mode), strict=True):
        assert one[0] == other[0]
        assert all(a.equal(b) for a, b in zip(one[1:], other[1:], strict=True))


SHAPES = {"mean": (), "tokens4": (4,), "none": (2, 3)}
TAP = "mid_block@t{}:empty:{}"


def tables_of(sizes, cells, draws, width=2):
    """Make tables in which every value is a number of its own, as files hold them: channels before places."""
    tables, start = [], 0
    for number, n in enumerate(sizes):
        features = {}
        for i, cell in enumerate(cells):
            pool = cell.rpartition(":")[2]
            shape = (n, *draws, *SHAPES[pool], width)
            values = start * 1000 + i * 10**5 + torch.arange(torch.Size(shape).numel()).view(shape).double()
            features[cell] = values.movedim(-1, -3).contiguous() if pool == "none" else values
        keys = [f"{number}/{i}" for i in range(n)]
        tables.append(FeatureTable(features, keys, torch.zeros(n, dtype=torch.int64), {}))
        start += n
    return tables


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    pool=st.sampled_from(sorted(SHAPES)),
    timesteps=st.integers(1, 3),
    draws=st.sampled_from([(), (1,), (3,)]),
    batch_size=st.integers(1, 6),
    world_size=st.integers(1, 3),
    skip=st.integers(0, 3),
)
def test_every_row_comes_once_whatever_the_shape_and_the_place(
    sizes, pool, timesteps, draws, batch_size, world_size, skip
):
    cells = [TAP.format(10 + t, pool) for t in range(timesteps)]
    tables = tables_of(sizes, cells, draws)
    mapped, memory = StoredRows(tables), StoredRows(place_tables(tables, "memory", split="train"))
    everything = rows_of(mapped.take(torch.arange(mapped.n)), cells)
    where = {
        tuple(row): address
        for row, *address in zip(*(part.tolist() for part in everything), strict=True)  # x, group, sample, number
    }

    def epoch(rows, rank=0, world=1, size=batch_size, state=None):
        loader = RowLoader(rows, size, 2, seed=1, rank=rank, world_size=world)
        if state:
            loader.load_state_dict(state)
        found = list(loader)
        assert len(found) == len(loader) - (state["batches"] if state else 0)
        return [rows_of(batch, cells) for batch in found]

    whole = epoch(mapped)
    together = [torch.cat(parts) for parts in zip(*whole, strict=True)]
    assert sorted(map(tuple, together[0].tolist())) == sorted(where)
    for row, *address in zip(*(part.tolist() for part in together), strict=True):
        assert where[tuple(row)] == address
    assert all(a.x.equal(b.x) for a, b in zip(whole, epoch(memory), strict=True))
    skip = min(skip, len(whole))
    rest = epoch(mapped, state={"epoch": 2, "batches": skip})
    assert all(a.x.equal(b.x) for a, b in zip(whole[skip:], rest, strict=True))
    one = epoch(mapped, size=batch_size * world_size)
    parts = [epoch(memory, rank, world_size) for rank in range(world_size)]
    for step, batch in enumerate(one):
        shares = [part[step].x.tolist() for part in parts]
        assert len({len(share) for share in shares}) == 1
        given, expected = (sorted(map(tuple, rows)) for rows in (sum(shares, []), batch.x.tolist()))
        last = step == len(one) - 1
        assert given == expected or (last and set(given) >= set(expected) and len(given) - len(expected) < world_size)


def test_rows_of_pooled_features_come_in_the_order_of_samples(both, shared):
    _, stored = both
    rows = StoredFeatures(*shared(features_shuffle="rows"), seed=3)
    for epoch in range(2):
        pairs = zip(*(source.loader("train", shuffle=True, epoch=epoch) for source in (stored, rows)), strict=True)
        for one, other in pairs:
            assert isinstance(other, RowBatch) and len(one) == len(other)
            for cell in stored.widths:
                assert rows_of(one, [cell]).x.equal(rows_of(other, [cell]).x)
                assert one.keys == [other.keys[i] for i in rows_of(other, [cell]).sample.tolist()]


def test_cells_that_train_side_by_side_get_the_rows_that_they_would_get_alone():
    cells = [TAP.format(10, "tokens4"), TAP.format(10, "none"), TAP.format(20, "tokens4")]
    tables = tables_of((5, 3), cells, ())
    both = list(RowLoader(StoredRows(tables), 3, seed=0))
    assert [len(batch) for batch in both] == [3, 3, 2]
    for cell in cells:
        for table in tables:
            table.features = {cell: table.features[cell]} | table.features
        alone = RowLoader(StoredRows(tables), 3, seed=0)
        for one, other in zip(both, alone, strict=True):
            assert rows_of(one, [cell]).x.equal(rows_of(other, [cell]).x)
            assert one.rows([cell]) is one.rows((cell,))  # gathered once
    assert len(rows_of(both[0], cells[:1]).x) == 12 and len(rows_of(both[2], cells[1:2]).x) == 12


@pytest.mark.parametrize(("group", "limit"), [(None, None), ("colour", 11)])
def test_a_validation_split_that_is_cut_out_has_the_same_samples_stored_and_live(both, shared, group, limit):
    fraction = {"data_val_split": "held", "data_val_fraction": 0.4, "data_val_group": group, "data_limit": limit}
    whole = [key for table in StoredFeatures(*shared()).store.iter_shards("train") for key in table.keys][:limit]
    stored, live = StoredFeatures(*shared(**fraction)), LiveFeatures(*shared(**fraction, features_source="live"))
    assert "held" not in stored.store.splits  # the store has the training split as a whole
    sides = {}
    for split in ("train", "held"):
        table, found = stored.table(split), live.table(split)
        assert table.keys == found.keys and table.shards == found.shards and table.captions == found.captions
        torch.testing.assert_close(table.features, found.features)  # batches of other sizes round otherwise
        for shuffle in (False, True):
            loader = stored.loader(split, shuffle=shuffle)
            keys = [key for batch in loader for key in batch.keys]
            assert sorted(keys) == sorted(table.keys) and len(loader) == -(-len(keys) // 4)
            assert len(live.loader(split, shuffle=shuffle)) == len(loader)
        ids = table.attributes.get("colour", table.label)
        sides[split] = set(ids.tolist() if group else table.keys)
    assert sorted(stored.table("train").keys + stored.table("held").keys) == sorted(whole)
    assert sides["train"] and sides["held"] and not sides["train"] & sides["held"]


def test_rows_of_a_cut_out_split_are_those_of_its_samples(shared):
    fraction = {"data_val_split": "held", "data_val_fraction": 0.4, "features_shuffle": "rows"}
    source = StoredFeatures(*shared(**fraction), seed=3)
    cell = next(iter(source.widths))
    table = source.table("train")
    by_key = dict(zip(table.keys, table.features[cell], strict=True))
    seen = []
    for batch in source.loader("train", shuffle=True):
        rows = batch.rows([cell])
        seen += [batch.keys[i] for i in rows.sample.tolist()]
        assert all(torch.equal(x, by_key[batch.keys[i]]) for x, i in zip(rows.x, rows.sample.tolist(), strict=True))
    assert sorted(seen) == sorted(table.keys)


def test_a_cut_out_split_without_a_stored_row_is_refused(shared):
    source = StoredFeatures(*shared(data_val_split="held", data_val_fraction=1e-9))
    with pytest.raises(ConfigError, match="leaves split 'held' without a sample"):
        source.loader("held", shuffle=False)
