"""Extraction: the same bytes whoever writes them and however often they are stopped; refused where they do not fit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
import torch

from diffprobe.config.schema import FieldsConfig
from diffprobe.core.errors import ConfigError, RunFailed, StoreIncomplete, StoreMismatch
from diffprobe.features.extract import _SpaceCheck, extract
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request, shard_entries
from diffprobe.features.stored import StoredFeatures
from diffprobe.shards.index import ShardSet

SPLITS = ("train", "val", "test")

# One interpreter starts the extracting processes one after the other, so that the imports are paid for once. Each says
# where it stands, so that it can be killed there.
RUN = """
import json, os, sys
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.features import extract as module
backbone, data, features = json.loads(sys.argv[1])
del data["fields"]
features["taps"], features["timesteps"] = tuple(features["taps"]), tuple(features["timesteps"])
for name in ("shard_loader", "to_features"):
    def spoken(*args, _inner=getattr(module, name), _name=name):
        print(os.getpid(), _name, flush=True)
        return _inner(*args)
    setattr(module, name, spoken)
request = module.Request(BackboneConfig(**backbone), DataConfig(**data), FeaturesConfig(**features))
request.extractor  # brings in what would be imported three times below
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        module.extract(BackboneConfig(**backbone), DataConfig(**data), FeaturesConfig(**features), progress=False)
        os._exit(0)
    print("ended", os.waitpid(child, 0)[1], flush=True)
"""


def kill_extractions(configs, after: list[tuple[int, float]]) -> None:
    """Start one extraction after the other and kill each after so many spoken lines and seconds."""
    command = [sys.executable, "-c", RUN, json.dumps([asdict(part) for part in configs]), str(len(after))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as launcher:
        for n_lines, seconds in after:
            said = [launcher.stdout.readline() for _ in range(n_lines)]
            time.sleep(seconds)
            os.kill(int(said[-1].split()[0]), signal.SIGKILL)
            while not (line := launcher.stdout.readline()).startswith("ended"):
                assert line, "the launcher ended early"
            assert line.split() == ["ended", str(int(signal.SIGKILL))]


def test_killed_at_random_points_and_resumed_the_store_is_byte_identical(alone, configs, tmp_path, file_bytes):
    generator = random.Random(0)
    parts = configs(features_store=str(tmp_path / "killed"))
    # 7 shards of 1 to 2 batches: the points lie in the first shard, behind it, and wherever a moment more leads
    kill_extractions(parts, [(2, 0.0), (4, generator.random() * 0.02), (3, generator.random() * 0.02)])
    with pytest.raises(StoreIncomplete):
        FeatureStore.find(tmp_path / "killed", Request(*parts).manifest)
    resumed = extract(*parts, progress=False)
    assert file_bytes(resumed) == file_bytes(alone)
    assert FeatureStore.open(resumed).verify() == []


def test_two_processes_together_give_the_bytes_of_one(alone, configs, tmp_path, file_bytes):
    parts = configs(features_store=str(tmp_path / "parts"))
    first = extract(*parts, process=(1, 2), progress=False)
    assert FeatureStore.open(first).missing()
    second = extract(*parts, process=(0, 2), progress=False)
    assert first == second
    assert file_bytes(second) == file_bytes(alone)


def test_a_complete_store_is_returned_untouched(alone, configs):
    parts = configs(features_store=str(alone.parent))
    path = extract(*parts, progress=False)
    assert path == alone
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    assert extract(*parts, progress=False) == path
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_fewer_cells_are_served_by_the_store_that_has_more(alone, configs):
    fewer = {"features_taps": ("mid_block",), "features_timesteps": (400,), "features_store": str(alone.parent)}
    assert extract(*configs(**fewer), progress=False) == alone
    source = StoredFeatures(*configs(**fewer))
    assert list(source.widths) == ["mid_block@t400:empty:mean"]


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


def test_rows_belong_to_their_samples(alone, tiny_shards):
    shard_set = ShardSet.load(tiny_shards)
    store = FeatureStore.open(alone)
    assert store.classes == shard_set.classes and store.attributes == shard_set.attributes
    for split in SPLITS:
        table = store.load(split)
        assert len(table) == shard_set.n_samples(split)
        assert table.shards == [shard.file for shard in shard_set.shards_of(split) for _ in range(shard.n_samples)]


@pytest.fixture(scope="module")
def alone(filled, tmp_path_factory):
    """A folder that holds the shared store and no other."""
    path = FeatureStore.find(filled[2].store, Request(*filled).manifest).path
    return shutil.copytree(path, tmp_path_factory.mktemp("alone") / path.name)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"features_seed": 1}, "seed"),
        ({"features_taps": ("mid_block", "up_blocks.1")}, "the store lacks up_blocks.1@t20"),
        ({"features_timesteps": (20, 300)}, "the store lacks mid_block@t300"),
        ({"features_draws": 2}, "draws"),
        ({"features_condition": "caption"}, "condition"),
        ({"backbone_random_weights": True}, "random_weights"),
        ({"data_limit": 2}, "sample counts"),
        ({"data_on_error": "skip"}, "on_error"),
        ({"data_fields": FieldsConfig(caption="text")}, "fields"),
    ],
)
def test_a_store_of_other_settings_is_refused_with_what_differs(alone, configs, changes, said):
    source = StoredFeatures(*configs(features_store=str(alone.parent), **changes))
    with pytest.raises(StoreMismatch, match=alone.name) as caught:
        source.setup()
    assert said in str(caught.value)
    assert "diffprobe extract" in str(caught.value)


def test_a_store_of_another_backbone_is_refused(alone, configs, tmp_path):
    from diffprobe.backbones.families import sd_unet

    other = sd_unet.tiny(tmp_path / "other", seed=5)
    with pytest.raises(StoreMismatch, match=r"(?s)backbone\..*store .*asked"):
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


def test_skipped_samples_are_listed_and_shift_no_row(alone, configs, tiny_shards, tmp_path):
    from diffprobe.shards.index import build_index
    from diffprobe.shards.read import read_shard
    from diffprobe.shards.write import write_shard

    broken = tmp_path / "broken"
    broken.mkdir()
    bad = ""
    for path in sorted(tiny_shards.glob("*.tar*")):
        samples = [(raw.key, dict(raw.files)) for raw in read_shard(path)]
        if path.name.startswith("train") and not bad:
            bad, files = samples[1]
            name = next(extension for extension in files if extension not in ("json", "txt", "cls"))
            files[name] = files[name][: len(files[name]) // 2]
        write_shard(broken / path.name, samples)
    build_index(broken, name="broken", licence="none")
    parts = configs(data_path=str(broken), data_on_error="skip")
    good = FeatureStore.open(alone).load("train")
    store = FeatureStore.open(extract(*parts, progress=False))
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


def test_a_part_that_does_not_exist_is_refused(configs):
    with pytest.raises(ConfigError, match="process 2/2 does not exist"):
        extract(*configs(), process=(2, 2), progress=False)


def test_a_full_disk_is_noticed_before_anything_is_written(tmp_path):
    from diffprobe.features.batch import FeatureBatch

    batch = FeatureBatch({"a@t1:empty:mean": torch.zeros(2, 1000)}, ["x", "y"], torch.zeros(2).long(), {})
    with pytest.raises(RunFailed, match="GB left"):
        _SpaceCheck(tmp_path, 10**15)(batch)
    _SpaceCheck(tmp_path, 2)(batch)
