"""A validation split that is cut out of train: by hash of key or group alone, each sample once, refused where idle."""

import json
from dataclasses import replace

import pytest

from diffprobe.cli.main import main
from diffprobe.config.schema import DataConfig
from diffprobe.core.errors import ConfigError
from diffprobe.shards.holdout import Holdout, open_view
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.stream import SampleStream, make_loader


def grouped(number, files):
    record = json.loads(files["json"])
    files["json"] = json.dumps({**record, "attributes": {"person": f"p{number // 4}"}}).encode()


def data_of(shard_set, **changes):
    return DataConfig(**{"path": str(shard_set.root), "test_split": "train", "val_fraction": 0.3, **changes})


def keys_of(view, split, **options):
    return [sample.key for sample in SampleStream(view, split, **options)]


def test_each_sample_is_on_one_side_whatever_the_shards_are(make_set, tmp_path):
    first = make_set(30, 0, 10, change=grouped)
    view = open_view(data_of(first))
    train, val = keys_of(view, "train"), keys_of(view, "val")
    assert sorted(train + val) == [f"k{i:03d}" for i in range(40)]
    rule = Holdout(fraction=0.3, group=None, train="train", val="val")
    assert val == [key for key in sorted(train + val) if rule.is_val(key)] and 4 < len(val) < 20
    assert view.digest == first.digest and view.splits() == ("train", "val")
    for path in tmp_path.glob("*.tar"):
        path.unlink()
    other = make_set(7, 33, change=grouped)
    assert keys_of(open_view(data_of(other)), "val") == val


def test_values_of_a_group_stay_together(make_set):
    shard_set = make_set(20, 21, change=grouped)
    for data in (data_of(shard_set, val_group="person"), data_of(replace(shard_set, grouped_by="person"))):
        view = open_view(data, shard_set if data.val_group else replace(shard_set, grouped_by="person"))
        sides = {split: {int(key[1:]) // 4 for key in keys_of(view, split)} for split in ("train", "val")}
        assert not sides["train"] & sides["val"] and sides["train"] | sides["val"] == set(range(11))
        by_key = open_view(replace(data, val_group="key"), shard_set)
        assert keys_of(by_key, "val") != keys_of(view, "val")


def test_the_group_of_an_index_is_the_default_and_part_of_its_digest(make_set):
    bare = make_set(12, change=grouped)
    named = build_index(bare.root, name="tiny", licence="CC0", grouped_by="person")
    loaded = ShardSet.load(bare.root)
    assert loaded.group == "person" and loaded == named
    assert loaded.digest == named.digest != bare.digest
    assert Holdout.of(data_of(bare), loaded).group == "person"
    with pytest.raises(ConfigError, match="unknown --group .*'persn'(?s:.*)person"):
        build_index(bare.root, name="tiny", licence="CC0", grouped_by="persn")


def test_the_commands_name_the_group_and_a_missing_validation_split(make_set, capsys):
    root = str(make_set(12, change=grouped).root)
    assert main(["data", "index", root, "--name", "tiny", "--licence", "CC0", "--group", "person"]) == 0
    printed = capsys.readouterr().out
    assert "group: person" in printed and "no split 'val'" in printed and "data.val_fraction=0.1" in printed
    assert main(["data", "adopt", root, "--group", "persn"]) == 2
    assert "nearest: person" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_and_workers_read_each_sample_once(make_set, world_size, num_workers):
    shard_set = make_set(13, 9, 1)
    view = open_view(data_of(shard_set))
    both = []
    for split in ("train", "val"):
        found = []
        for rank in range(world_size):
            stream = SampleStream(view, split, rank=rank, world_size=world_size)
            loader = make_loader(stream, 2, num_workers)
            batches = list(loader)
            assert len(batches) == len(loader) and sum(map(len, batches)) == stream.n_samples
            found += [key for batch in batches for key in batch.keys]
        assert sorted(found) == keys_of(view, split)
        both += found
    assert sorted(both) == [f"k{i:03d}" for i in range(23)]
    sizes = {SampleStream(view, "train", rank=r, world_size=3, equal=True).n_samples for r in range(3)}
    assert len(sizes) == 1


@pytest.mark.parametrize("limit", [8, 10, 17, 30])
def test_a_limit_counts_samples_before_they_are_divided(make_set, limit):
    data = data_of(make_set(10, 10, 10), limit=limit, val_fraction=0.5)
    view = open_view(data)
    found = [keys_of(view, split, limit=limit) for split in ("train", "val")]
    assert sorted(found[0] + found[1]) == [f"k{i:03d}" for i in range(limit)]


def test_a_faulty_sample_is_left_out_of_its_split(make_set):
    def broken(number, files):
        grouped(number, files)
        if number == 3:
            files["json"] = b"{"

    shard_set = make_set(12, change=broken, on_error="skip")
    view = open_view(data_of(shard_set, val_group="person", val_fraction=0.5))
    streams = [SampleStream(view, split, on_error="skip") for split in ("train", "val")]
    found = sorted(sample.key for stream in streams for sample in stream)
    assert found == [f"k{i:03d}" for i in range(12) if i != 3]
    assert len([key for stream in streams for key in stream.skipped]) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_split": "train", "train_split": "other"}, "no effect: 'tiny' has a split 'train'"),
        ({"val_group": "persn"}, "unknown data.val_group .*'persn'(?s:.*)person(?s:.*)data.val_group=key"),
        ({"val_group": "place"}, r"2 samples of split 'train' have no value of the group 'place'(?s:.*)'k001'"),
        ({"val_fraction": 1e-6}, "leaves split 'val' without a sample: all 8 (?s:.*)a larger data.val_fraction"),
        ({"val_fraction": 1 - 1e-6}, "leaves split 'train' without a sample(?s:.*)a smaller data.val_fraction"),
    ],
)
def test_what_has_no_effect_or_leaves_a_split_empty_is_refused(make_set, changes, words):
    def change(number, files):
        record = json.loads(files["json"])
        attributes = {"person": f"p{number}", **({} if number in (1, 2) else {"place": "here"})}
        files["json"] = json.dumps({**record, "attributes": attributes}).encode()

    shard_set = make_set(8, change=change)
    data = data_of(shard_set, **{"test_split": "t", **changes})
    with pytest.raises(ConfigError, match=words):
        open_view(data)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"val_fraction": 0.0}, "val_fraction=0.0 is out of range"),
        ({"val_fraction": 1.0}, "val_fraction=1.0 is out of range"),
        ({"val_group": "family"}, "val_group=family has no effect without val_fraction"),
        ({"val_fraction": 0.1, "val_split": "train"}, "val_split=train is also another split's name"),
        ({"val_fraction": 0.1, "val_split": "test"}, "val_split=test is also another split's name"),
    ],
)
def test_settings_out_of_range_are_refused_when_they_are_parsed(changes, words):
    with pytest.raises(ConfigError, match=words):
        DataConfig(path="x", **changes)
