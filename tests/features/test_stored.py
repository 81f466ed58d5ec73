"""Stored features: random access to mapped files, no backbone, refused before a run starts."""

import pytest
import torch

from diffprobe.core.errors import StoreMismatch
from diffprobe.features.stored import Rows, StoredFeatures, open_rows


def test_mapped_and_in_memory_rows_are_the_same(both):
    _, stored = both
    tables = list(stored.store.iter_shards("train"))
    assert len(tables) == 3
    memory, mapped = Rows(tables), Rows(tables, in_memory_bytes=0)
    assert len(mapped.tables) == 3 and len(memory.tables) == 1 and mapped.n == memory.n
    rows = torch.randperm(mapped.n, generator=torch.Generator().manual_seed(0))
    one, two = memory.take(rows), mapped.take(rows)
    assert one.keys == two.keys
    assert torch.equal(one.label, two.label)
    assert all(torch.equal(one.features[cell], two.features[cell]) for cell in one.features)


def test_a_store_can_be_read_without_a_backbone(both):
    _, stored = both
    rows = open_rows(stored.store.path, "val", ["mid_block@t20"])
    assert rows.n == len(stored.table("val"))


def test_stored_features_of_other_settings_stop_a_run_before_it_starts(both, shared, make_trainer, probe_class):
    cell = "mid_block@t20:empty:mean"
    probe = probe_class(cell, 8, 3)
    with pytest.raises(StoreMismatch, match="seed: store 0, asked 7"):
        make_trainer().fit(probe, StoredFeatures(*shared(features_seed=7)))
