"""Extraction: complete stores are left alone, rows belong to their samples, other settings are refused."""

import contextlib
import json
import os
import shutil

import pytest
import torch

from diffprobe.config.schema import FieldsConfig
from diffprobe.core.errors import ConfigError, ShardError, StoreIncomplete, StoreMismatch
from diffprobe.features.extract import extract
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import shard_entries
from diffprobe.features.stored import StoredFeatures
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import read_shard
from diffprobe.shards.writer import write_shard

SPLITS = ("train", "val", "test")


def test_a_complete_store_is_returned_untouched(alone, configs):
    parts = configs(features_store=str(alone.parent))
    path = extract(*parts, progress=False)
    assert path == alone
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert extract(*parts, progress=False) == path
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_leftovers_of_a_process_that_was_killed_after_its_last_shard_are_removed(alone, configs):
    (alone / ".writing-0123456789abcdef.lock").touch()
    (alone / ".manifest.json.0123.tmp").touch()
    (alone / ".writing-0123456789abcdef").mkdir()
    assert extract(*configs(features_store=str(alone.parent)), progress=False) == alone
    assert not [path.name for path in alone.iterdir() if path.name.startswith(".")]


def test_fewer_cells_are_served_by_the_store_that_has_more(alone, configs):
    fewer = {"features_taps": ("mid_block",), "features_timesteps": (400,), "features_store": str(alone.parent)}
    assert extract(*configs(**fewer), progress=False) == alone
    source = StoredFeatures(*configs(**fewer))
    assert list(source.widths) == ["mid_block@t400:empty:mean"]


@pytest.mark.slow
def test_features_do_not_depend_on_batch_size_and_workers(alone, configs, tmp_path):
    one = FeatureStore.open(alone)
    other = configs(features_store=str(tmp_path / "b"), data_batch_size=7, data_num_workers=2)
    two = FeatureStore.open(extract(*other, progress=False))
    assert one.manifest.digest == two.manifest.digest
    for split in SPLITS:
        first, second = one.load(split), two.load(split)
        assert first.keys == second.keys
        assert first.captions == second.captions
        for cell in one.cells:
            torch.testing.assert_close(first.features[cell], second.features[cell], atol=1e-5, rtol=0)


def test_unused_workers_are_announced(configs):
    lines = []
    extract(*configs(data_num_workers=2), splits=["val"], progress=False, announce=lines.append)
    assert lines[0].startswith("data.num_workers=2, of which extraction uses one")


def test_rows_belong_to_their_samples(alone, tiny_shards):
    shard_set = ShardSet.load(tiny_shards)
    store = FeatureStore.open(alone)
    assert store.classes() == shard_set.classes and store.attributes == shard_set.attributes
    for split in SPLITS:
        table = store.load(split)
        assert len(table) == shard_set.n_samples(split)
        assert table.shards == [shard.file for shard in shard_set.shards_of(split) for _ in range(shard.n_samples)]


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"features_seed": 1}, "seed"),
        ({"features_taps": ("mid_block", "up_blocks.1")}, "missing in the store: up_blocks.1@t20"),
        ({"features_timesteps": (20, 300)}, "missing in the store: mid_block@t300"),
        ({"features_draws": 2}, "draws"),
        ({"features_condition": "caption"}, "condition"),
        ({"backbone_random_weights": True}, "random_weights"),
        ({"data_limit": 2}, "sample counts"),
        ({"data_on_error": "skip"}, "on_error"),
        ({"data_fields": FieldsConfig(caption="text")}, "fields"),
    ],
)
def test_a_store_of_other_settings_is_refused_with_what_differs(alone, configs, changes, difference):
    source = StoredFeatures(*configs(features_store=str(alone.parent), **changes))
    with pytest.raises(StoreMismatch, match=alone.name) as caught:
        source.setup()
    assert difference in str(caught.value)
    assert "diffprobe extract" in str(caught.value)


def test_a_store_of_another_backbone_is_refused(alone, configs, tmp_path):
    from diffprobe.backbones.families import sd_unet

    other = sd_unet.tiny(tmp_path / "other", seed=5)
    with pytest.raises(StoreMismatch, match=r"(?s)backbone\..*store .*requested"):
        StoredFeatures(*configs(features_store=str(alone.parent), backbone_path=str(other))).setup()


def test_a_store_of_another_data_set_is_refused(alone, configs, tiny_shards, tmp_path):
    from diffprobe.shards.index import build_index

    copy = tmp_path / "copy"
    shutil.copytree(tiny_shards, copy)
    sorted(copy.glob("train-*"))[-1].unlink()
    build_index(copy, name="copy", licence="none")
    with pytest.raises(StoreMismatch, match="shard_set: store"):
        StoredFeatures(*configs(features_store=str(alone.parent), data_path=str(copy))).setup()


def test_a_store_at_another_place_is_not_guessed(configs):
    with pytest.raises(StoreIncomplete, match="no feature store") as caught:
        StoredFeatures(*configs(data_limit=3)).setup()
    command = str(caught.value).splitlines()[-1]
    assert "diffprobe extract" in command and "data.limit=3" in command and "features.taps=" in command


def test_limit_takes_the_first_samples_of_each_split(configs, tiny_shards):
    shard_set = ShardSet.load(tiny_shards)
    first = shard_set.shards_of("train")[0]
    limited = FeatureStore.open(extract(*configs(data_limit=first.n_samples + 1), progress=False))
    assert [(s.file, s.n) for s in limited.shards(["train"])] == [
        (first.file, first.n_samples),
        (shard_set.shards_of("train")[1].file, 1),
    ]
    assert len(limited.load("train")) == first.n_samples + 1
    assert [entry.n for entry in shard_entries(shard_set, "train", None)] == [
        shard.n_samples for shard in shard_set.shards_of("train")
    ]


def test_a_store_of_all_samples_serves_a_limit_and_no_sample_more(alone, configs, tiny_shards):
    first = ShardSet.load(tiny_shards).shards_of("train")[0]  # a whole shard, whose entry is the same either way
    parts = configs(features_store=str(alone.parent), data_limit=first.n_samples)
    assert extract(*parts, progress=False) == alone
    source = StoredFeatures(*parts)
    source.setup()
    assert source.table("train").shards == [first.file] * first.n_samples
    assert [shard.file for shard in source.store.shards(["train"])] == [first.file]
    assert sum(len(batch) for batch in source.loader("train", shuffle=True)) == first.n_samples


def test_skipped_samples_are_listed_and_shift_no_row(alone, configs, broken_shards):
    root, bad = broken_shards
    counted = Count()
    good = FeatureStore.open(alone).load("train")
    store = FeatureStore.open(extract(*configs(data_path=str(root), data_on_error="skip"), progress=counted))
    assert counted.total == counted.done == 24  # those left out are behind us too
    table = store.load("train")
    assert table.keys == [key for key in good.keys if key != bad]
    kept = [row for row, key in enumerate(good.keys) if key != bad]
    for cell, values in table.features.items():
        torch.testing.assert_close(values, good.features[cell][kept], atol=1e-5, rtol=0)
    assert torch.equal(table.label, good.label[kept])
    shard = next(shard for shard in store.shards(["train"]))
    record = json.loads((store.path / shard.file / "samples.json").read_text())
    assert [entry["key"] for entry in record["left_out"]] == [bad]
    assert bad in record["left_out"][0]["message"]
    assert store.verify() == []


class Count:
    """A bar that only counts."""

    total = done = 0

    def __call__(self, n):
        self.total = n
        return contextlib.nullcontext(self)

    def update(self, n):
        self.done += n


def test_the_bar_and_the_last_line_count_what_this_call_did(configs, tmp_path):
    parts, bar, lines = configs(), Count(), []
    extract(*parts, process=(1, 2), progress=False)
    path = extract(*parts, progress=bar, announce=lines.append)
    n = sum(shard.n for shard in FeatureStore.open(path).manifest.shards[::2])
    assert bar.total == bar.done == n
    assert lines[0].startswith(f"to write: {n} images x 4 cells")
    assert lines[-1].startswith(f"{n} images in ") and "images/s" in lines[-1] and str(path) in lines[-1]
    assert extract(*parts, progress=False, announce=lines.append) == path
    assert lines[-1] == f"the store is complete: {path}"


@pytest.mark.parametrize("latents", [False, True])
def test_nothing_is_kept_of_a_shard_that_is_not_the_one_indexed(configs, tiny_shards, tmp_path, latents):
    """The file is another one of the same size and time, as a copy from elsewhere may be."""
    copy = shutil.copytree(tiny_shards, tmp_path / "copy")
    shard = copy / "train-0000.tar"
    raws = list(read_shard(shard))
    stat = shard.stat()
    write_shard(shard, [(raw.key, other.files) for raw, other in zip(raws, reversed(raws), strict=True)])
    os.utime(shard, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert shard.stat().st_size == stat.st_size
    changes = {"features_latent_cache": str(tmp_path / "l")} if latents else {}
    with pytest.raises(ShardError, match=r"train-0000.tar: .*sha256"):
        extract(*configs(data_path=str(copy), **changes), splits=["train"], progress=False)
    assert not list(tmp_path.glob("[sl]/*/train-0000.tar"))


def test_a_sample_without_a_caption_is_not_told_an_empty_one(configs, tiny_shards, tmp_path):
    from diffprobe.shards.index import build_index
    from diffprobe.shards.reader import read_shard
    from diffprobe.shards.writer import write_shard

    (raw,) = list(read_shard(tiny_shards / "val-0000.tar"))[:1]
    record = {"label": 0, "class_name": "a"}
    write_shard(tmp_path / "silent-0000.tar", [(raw.key, {**raw.files, "json": json.dumps(record).encode()})])
    build_index(tmp_path, name="silent", licence="none")
    parts = configs(data_path=str(tmp_path), features_condition="caption")
    with pytest.raises(ConfigError, match="needs the caption of every sample.*1 of 1 samples of split 'silent'"):
        extract(*parts, splits=["silent"], progress=False)


def test_a_part_that_does_not_exist_is_refused(configs):
    with pytest.raises(ConfigError, match="process 2/2 does not exist"):
        extract(*configs(), process=(2, 2), progress=False)
