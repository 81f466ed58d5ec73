"""The undecoded samples of a split: order, limit, and those that a view leaves out."""

from pathlib import Path

import pytest

from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import UnknownName
from diffprobe.shards.holdout import open_view
from diffprobe.shards.index import ShardSet
from diffprobe.shards.raw_samples import read_raw_samples


def test_samples_come_in_shard_order_up_to_the_limit(tiny_shards: Path) -> None:
    shard_set = ShardSet.load(tiny_shards)
    whole = [raw.key for raw in read_raw_samples(shard_set, "train")]
    read = [raw.key for shard in shard_set.shards_of("train") for raw in shard_set.read(shard.file)]
    assert whole == read and len(whole) == 16
    for limit in (0, 1, 7, 100):
        assert [raw.key for raw in read_raw_samples(shard_set, "train", limit=limit)] == whole[:limit]


def test_a_view_leaves_out_what_is_in_its_other_split(tiny_shards: Path) -> None:
    view = open_view(DataConfig(path=str(tiny_shards), val_split="cut", val_fraction=0.25))
    parts = [[raw.key for raw in read_raw_samples(view, split)] for split in ("train", "cut")]
    whole = [raw.key for raw in read_raw_samples(ShardSet.load(tiny_shards), "train")]
    assert all(parts) and sorted(parts[0] + parts[1]) == sorted(whole)
    assert [raw.key for raw in read_raw_samples(view, "cut", limit=1)] == parts[1][:1]


def test_a_split_that_is_not_there_is_refused(tiny_shards: Path) -> None:
    with pytest.raises(UnknownName, match="train"):
        list(read_raw_samples(ShardSet.load(tiny_shards), "middle"))
