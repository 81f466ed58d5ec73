"""Batches and tables: rows stay together."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.features.batch import FeatureTable, RowBatch, RowValues, concatenate
from diffprobe.features.stored import StoredRows


def make_table(first: int, n: int) -> FeatureTable:
    numbers = torch.arange(first, first + n)
    return FeatureTable(
        features={"a": numbers[:, None].float(), "b": numbers[:, None, None].float().expand(n, 2, 3)},
        keys=[f"key {i}" for i in numbers],
        label=numbers,
        attributes={"style": -numbers},
        captions=[f"caption {i}" for i in numbers],
        shards=[f"shard {first}"] * n,
    )


def test_joined_tables_keep_every_column_in_order():
    joined, whole = concatenate([make_table(0, 3), make_table(3, 2)]), make_table(0, 5)
    assert len(joined) == 5
    assert (joined.keys, joined.captions) == (whole.keys, whole.captions)
    assert joined.shards == ["shard 0"] * 3 + ["shard 3"] * 2
    assert torch.equal(joined.label, whole.label) and torch.equal(joined.attributes["style"], -whole.label)
    assert all(torch.equal(joined.features[cell], whole.features[cell]) for cell in ("a", "b"))


def test_one_table_is_not_copied():
    table = make_table(0, 2)
    assert concatenate([table]) is table


def test_taken_rows_belong_together():
    batch = make_table(10, 5).take(torch.tensor([3, 0, 3]))
    assert batch.keys == ["key 13", "key 10", "key 13"]
    assert batch.captions == ["caption 13", "caption 10", "caption 13"]
    assert batch.label.tolist() == [13, 10, 13] and batch.attributes["style"].tolist() == [-13, -10, -13]
    assert batch.features["a"].flatten().tolist() == [13.0, 10.0, 13.0]
    assert batch.features["b"].shape == (3, 2, 3)


def test_a_moved_batch_has_all_its_tensors_moved():
    moved = make_table(0, 2).take(torch.tensor([0, 1])).to("meta")
    tensors = [*moved.features.values(), moved.label, *moved.attributes.values()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert moved.keys == ["key 0", "key 1"] and moved.captions == ["caption 0", "caption 1"]


def test_captions_follow_rows_through_several_tables():
    rows = StoredRows([make_table(0, 3), make_table(3, 2)])
    batch = rows.take(torch.tensor([4, 1, 3, 0]))
    assert (
        batch.captions
        == [key.replace("key", "caption") for key in batch.keys]
        == [f"caption {i}" for i in (4, 1, 3, 0)]
    )


def test_a_batch_of_rows_gathers_once_and_has_no_samples():
    asked = []

    def take(cells):
        asked.append(cells)
        numbers = torch.arange(3)
        return RowValues(torch.full((3, 2), float(len(cells))), numbers, numbers, numbers)

    batch = RowBatch(take, ["a", "b", "c"], 2)
    assert len(batch) == 2 and batch.keys[2] == "c"
    assert batch.rows(["x"]) is batch.rows(("x",)) and asked == [("x",)]
    moved = batch.to("meta", non_blocking=True)
    assert {part.device.type for part in moved.rows(["x", "y"])} == {"meta"} and moved.keys == batch.keys
    for name in ("features", "label", "attributes"):
        with pytest.raises(ConfigError, match=f"{name} of whole samples"):
            getattr(batch, name)
    assert not hasattr(batch, "anything")
