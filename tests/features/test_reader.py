"""A store serves what it holds, refuses what it does not, and notices changed bytes."""

import json
import os

import pytest
import torch

from diffprobe.core.artifact import write_artifact
from diffprobe.core.errors import (
    ConfigError,
    DiffprobeError,
    RunFailed,
    SchemaError,
    StoreIncomplete,
    StoreMismatch,
    UnknownName,
)
from diffprobe.core.patience import Patience
from diffprobe.features.manifest import SCHEMA_VERSION, cell_file
from diffprobe.features.reader import FeatureStore, list_stores
from diffprobe.features.writer import StoreWriter

CELL = "mid_block@t10:empty:mean"


def test_what_was_written_is_read_back_in_shard_order(tmp_path, manifest, fill, toy_batches):
    table = fill(tmp_path, manifest).load("train")
    items = [item for shard in manifest.shards[:2] for item in toy_batches(manifest, shard)]
    for cell in manifest.cells:
        assert torch.equal(table.features[cell], torch.cat([item.batch.features[cell] for item in items]))
    assert table.keys == [key for item in items for key in item.batch.keys]
    assert table.captions == [caption for item in items for caption in item.captions]
    assert torch.equal(table.label, torch.cat([item.batch.label for item in items]))
    assert torch.equal(table.attributes["style"], torch.cat([item.batch.attributes["style"] for item in items]))
    assert table.shards == ["train-0000.tar"] * 7 + ["train-0001.tar"] * 4
    assert len(table) == 11


def test_cells_can_be_chosen_and_take_gives_rows(tmp_path, manifest, fill):
    table = fill(tmp_path, manifest).load("val", [CELL])
    assert list(table.features) == [CELL]
    batch = table.take(torch.tensor([4, 0]))
    assert batch.keys == ["val-0000.tar/4", "val-0000.tar/0"]
    assert torch.equal(batch.features[CELL], table.features[CELL][[4, 0]])
    assert len(batch) == 2


def test_unknown_split_and_cell_list_what_there_is(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    with pytest.raises(UnknownName, match="split") as caught:
        store.load("tset")
    assert "train, val" in str(caught.value)
    with pytest.raises(UnknownName, match="cell") as caught:
        store.load("val", ["mid_blok@t10:empty:mean"])
    assert f"nearest: {CELL}" in str(caught.value)


def test_find_without_any_store_shows_how_to_create_one(tmp_path, manifest):
    with pytest.raises(StoreIncomplete, match="no feature store") as caught:
        FeatureStore.find(tmp_path, manifest, command="diffprobe extract data=toy")
    assert "fix: diffprobe extract data=toy" in str(caught.value)


def test_find_names_the_missing_shards_and_the_command(tmp_path, manifest, fill):
    fill(tmp_path, manifest, process=(0, 2))
    with pytest.raises(StoreIncomplete, match="lacks 1 of 3 shards") as caught:
        FeatureStore.find(tmp_path, manifest, command="diffprobe extract data=toy")
    assert "missing: train-0001.tar" in str(caught.value)
    assert "continue: diffprobe extract data=toy" in str(caught.value)


def test_an_incomplete_store_still_gives_its_complete_splits(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest, process=(0, 2))
    assert len(store.load("val")) == 5
    with pytest.raises(StoreIncomplete):
        store.load("train")


def test_find_refuses_other_stores_and_lists_what_differs_from_the_nearest(tmp_path, manifest, changed_manifest, fill):
    far = changed_manifest(backbone={"weights": "00" * 32, "seed": 9}, data={**manifest.data, "on_error": "skip"})
    near = changed_manifest(backbone={**manifest.backbone, "seed": 1})
    fill(tmp_path, far)
    store = fill(tmp_path, near)
    with pytest.raises(StoreMismatch, match=store.path.name) as caught:
        FeatureStore.find(tmp_path, manifest, command="diffprobe extract data=toy")
    assert "backbone.seed: store 1, requested 0" in str(caught.value)
    assert "weights" not in str(caught.value)
    assert "diffprobe extract data=toy" in str(caught.value)


def test_find_takes_a_complete_store_with_more_cells(tmp_path, manifest, changed_manifest, fill):
    store = fill(tmp_path, manifest)
    asked = changed_manifest(cells={CELL: 3}, backbone={**manifest.backbone, "taps": ["mid_block"]})
    assert FeatureStore.find(tmp_path, asked).path == store.path


def test_find_prefers_a_complete_store_to_the_begun_one_of_the_same_name(tmp_path, manifest, changed_manifest, fill):
    asked = changed_manifest(cells={CELL: 3}, backbone={**manifest.backbone, "taps": ["mid_block"]})
    fill(tmp_path, asked, process=(0, 2))
    store = fill(tmp_path, manifest)
    assert FeatureStore.find(tmp_path, asked).path == store.path


def test_what_was_changed_or_is_gone_is_not_loaded(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    samples = store.path / "val-0000.tar" / "samples.json"
    samples.write_text(samples.read_text().replace("caption 3", "caption 4", 1))
    (store.path / "train-0000.tar" / "mid_block@t10.empty.mean.safetensors").unlink()
    with pytest.raises(SchemaError, match="val-0000.tar"):
        store.load("val")
    with pytest.raises(StoreIncomplete, match="is missing"):
        store.load("train")


def test_a_shard_folder_of_another_store_is_refused(tmp_path, manifest, changed_manifest, fill):
    store = fill(tmp_path, manifest)
    other = fill(tmp_path, changed_manifest(backbone={**manifest.backbone, "seed": 1}))
    (store.path / "val-0000.tar" / "samples.json").write_bytes((other.path / "val-0000.tar/samples.json").read_bytes())
    with pytest.raises(SchemaError, match="belongs to another store"):
        store.load("val")


def test_a_truncated_feature_file_is_named(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    path = store.path / "val-0000.tar" / "mid_block@t10.empty.mean.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(SchemaError, match="mid_block@t10.empty.mean.safetensors"):
        store.load("val")


def test_a_folder_without_manifest_is_not_a_store(tmp_path):
    with pytest.raises(StoreIncomplete, match="no manifest.json"):
        FeatureStore.open(tmp_path)


def test_a_store_of_latents_is_none_of_features(tmp_path, manifest, latent_manifest, fill):
    store, latents = fill(tmp_path, manifest), fill(tmp_path, latent_manifest)
    assert [found.path for found in list_stores(tmp_path)] == [store.path]
    assert {found.path for found in list_stores(tmp_path, kind=None)} == {store.path, latents.path}
    with pytest.raises(SchemaError, match="'latent_store', expected 'feature_store'"):
        FeatureStore.open(latents.path)
    table = FeatureStore.open(latents.path, kind=None).load("val")
    assert list(table.features) == ["vae_latents"] and len(table) == 5


def test_a_broken_store_is_listed_and_does_not_hide_the_others(tmp_path, manifest, changed_manifest, fill):
    store = fill(tmp_path, manifest)
    broken = fill(tmp_path, changed_manifest(dtype="float16"))
    (broken.path / "manifest.json").write_text("{")
    faults: dict[str, DiffprobeError] = {}
    assert [found.path for found in list_stores(tmp_path, broken=faults)] == [store.path]
    assert list(faults) == [broken.path.name]
    (broken.path / "manifest.json").unlink()
    os.mkfifo(broken.path / "manifest.json")
    faults.clear()
    assert [found.path for found in list_stores(tmp_path, broken=faults)] == [store.path]
    assert isinstance(faults[broken.path.name], StoreIncomplete)
    assert FeatureStore.find(tmp_path, manifest).path == store.path


def test_classes_and_attribute_values_come_with_the_store(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    assert store.classes() == store.classes("label") == ("cat", "dog")
    assert store.classes("style") == ("a", "b", "c") and store.splits == ("train", "val")
    assert store.attributes == {"style": ("a", "b", "c")}


def test_arrays_are_the_features_and_targets_of_one_cell(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    table = store.load("train")
    x, y = store.arrays("mid_block@t10")
    assert torch.equal(x, table.features[CELL]) and torch.equal(y, table.label)
    assert store.arrays(CELL, split="val")[0].shape == (5, 3)


def test_arrays_leave_out_samples_without_the_target(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    table = store.load("train")
    known = table.attributes["style"] >= 0
    x, y = store.arrays("mid_block", target="style")
    assert 0 < len(y) < len(table) and torch.equal(y, table.attributes["style"][known])
    assert torch.equal(x, table.features[CELL][known])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cell": "mid_blok@t10"}, f"nearest: {CELL}"),
        ({"cell": "mid_block", "split": "vall"}, "nearest: val"),
        ({"cell": "mid_block", "target": "stile"}, "nearest: style"),
        ({"cell": "mid_block", "target": "lable"}, "nearest: label"),
    ],
)
def test_unknown_names_in_arrays_are_refused_with_the_nearest(tmp_path, manifest, fill, arguments, message):
    store = fill(tmp_path, manifest)
    with pytest.raises(UnknownName) as caught:
        store.arrays(**arguments)
    assert message in str(caught.value)


def test_arrays_need_one_vector_per_sample(tmp_path, changed_manifest, toy_batches):
    manifest = changed_manifest(cells={"mid_block@t10:empty:none": 3})
    writer = StoreWriter(tmp_path, manifest)
    for shard in manifest.shards:
        items = list(toy_batches(manifest, shard))
        for item in items:
            item.batch.features = {cell: x[:, :, None, None] for cell, x in item.batch.features.items()}
        writer.write(shard, items)
    with pytest.raises(ConfigError, match=r"\[3, 1, 1\]"):
        FeatureStore.open(writer.path).arrays("mid_block")


def make_old(path, version=2):
    """Rewrite a manifest as an older version wrote it: its digests fit."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["header"]["schema_version"] = version
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_store_of_an_older_schema_is_refused_with_the_command_that_extracts_it_again(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    make_old(store.path)
    faults: dict[str, DiffprobeError] = {}
    assert list(list_stores(tmp_path, broken=faults)) == [] and list(faults) == [store.path.name]
    for open_it in (lambda: FeatureStore.open(store.path), lambda: FeatureStore.find(tmp_path, manifest)):
        with pytest.raises(SchemaError, match="schema version 2 of 'feature_store'") as caught:
            open_it()
        fix = caught.value.fix or ""
        assert "diffprobe extract backbone.path=toy data.path=" in fix
        assert "'features.taps=[mid_block,up_blocks.0]' 'features.timesteps=[10]'" in fix and str(store.path) in fix


def flip(path, place=-3):
    """Change one byte and keep size and time."""
    time, data = path.stat().st_mtime_ns, bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(time, time))


def test_a_changed_byte_of_a_cell_is_noticed_when_its_split_is_opened(tmp_path, manifest, fill):
    path = fill(tmp_path, manifest).path
    FeatureStore.open(path).load("train")
    flip(path / "train-0001.tar" / cell_file(CELL))
    store = FeatureStore.open(path)
    with pytest.raises(SchemaError, match=r"train-0001.tar/mid_block@t10.empty.mean.*modified .*checksum") as caught:
        store.load("train", [CELL])
    assert f"diffprobe store verify {path}" in str(caught.value.fix)
    with pytest.raises(SchemaError, match="checksum"):
        store.arrays(CELL)
    assert len(store.load("val")) == 5 and len(store.load("train", ["up_blocks.0@t10:empty:mean"])) == 11
    assert len(FeatureStore.open(path, verify=False).load("train")) == 11


def test_a_file_is_hashed_once_per_process(tmp_path, manifest, fill, monkeypatch):
    from diffprobe.core import digest

    path, hashed, whole = fill(tmp_path, manifest).path, [], digest.digest_file
    monkeypatch.setattr(digest, "digest_file", lambda path: hashed.append(path) or whole(path))
    for _ in range(3):
        FeatureStore.open(path).load("train")
    assert len(hashed) == 4  # two shards, two cells
    FeatureStore.open(path, verify=False).load("val")
    assert len(hashed) == 4


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s["keys"].pop(), "'captions' has 5 values for 4 keys"),
        (lambda s: s["label"].append(0), "'label' has 6 values for 5 keys"),
        (lambda s: s["label"].__setitem__(0, 2), "label: expected integers from -1 to 1"),
        (lambda s: s["label"].__setitem__(0, -2), "label: expected integers"),
        (lambda s: s["label"].__setitem__(0, True), "label: expected integers"),
        (lambda s: s["label"].__setitem__(0, 10**30), "label: expected integers"),
        (lambda s: s["attributes"]["style"].__setitem__(0, 3), "attributes.style: expected integers from -1 to 2"),
        (lambda s: s["attributes"].update(age=[0] * 5), "'age' is not in the manifest"),
        (lambda s: s["captions"].__setitem__(0, None), "captions: expected texts"),
        (lambda s: s.pop("captions"), "KeyError"),
        (lambda s: s.update(attributes=[]), "attributes: expected an object"),
        (lambda s: s["cells"][CELL].update(file="../../secret.safetensors"), "has the file '../../secret"),
        (lambda s: s["cells"].pop(CELL), "is missing"),
        (lambda s: s["cells"].update({CELL: 3}), "TypeError"),
    ],
)
def test_samples_that_someone_else_sealed_are_validated(tmp_path, manifest, fill, edit, message):
    store = fill(tmp_path, manifest)
    path = store.path / "val-0000.tar" / "samples.json"
    samples = json.loads(path.read_text())
    edit(samples)
    write_artifact(path, {k: v for k, v in samples.items() if k != "header"}, kind="feature_shard", schema_version=2)
    with pytest.raises(SchemaError, match=f"samples.json' is not complete.*{message}"):
        FeatureStore.open(store.path).load("val")
    assert len(store.verify()) >= 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(cells=["a"]), "cells: expected an object"),
        (lambda m: m["cells"].update({"../x@t1:empty:mean": 3}), r"cells: ../x@t1"),
        (lambda m: m["cells"].update({"x": 3}), "cells: x"),
        (lambda m: m["cells"].update({CELL: "3"}), "expected int"),
        (lambda m: m["shards"][0].update(n="7"), "shards: n: expected int"),
        (lambda m: m["shards"][0].pop("file"), "TypeError"),
        (lambda m: m.update(shards=3), "TypeError"),
        (lambda m: m["recorded"].update(attributes={"label": ["x"]}), "'label': diffprobe uses this name"),
        (lambda m: m["recorded"].update(attributes={"style": "abc"}), "recorded.style: expected a list"),
        (lambda m: m["recorded"].update(classes=None), "recorded.classes: expected a list"),
        (lambda m: m["recorded"].pop("licence"), "licence"),
        (lambda m: m.update(data=[]), "data: expected an object"),
        (lambda m: m.update(dtype=None), "dtype: expected a text"),
    ],
)
def test_a_manifest_that_someone_else_sealed_is_validated(tmp_path, manifest, fill, edit, message):
    store = fill(tmp_path, manifest)
    path = store.path / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    write_artifact(
        path, {k: v for k, v in content.items() if k != "header"}, kind="feature_store", schema_version=SCHEMA_VERSION
    )
    with pytest.raises(SchemaError, match=f"not a complete manifest.*{message}"):
        FeatureStore.open(store.path)
    broken = {}
    assert list(list_stores(tmp_path, broken=broken)) == [] and list(broken) == [store.path.name]


class Away:
    """Takes a store away when its second shard is opened, and puts it back after some waits."""

    def __init__(self, store, waits_away):
        self.store, self.waits, self.waits_away = store, [], waits_away
        self.path, self.away = store.path, store.path.with_name("away")
        self._table, self.opened = store._table, 0
        store._table = self.table
        store.patience = Patience(seconds=50, clock=lambda: sum(self.waits), sleep=self.sleep)

    def table(self, shard, cells):
        self.opened += 1
        if self.opened == 2:
            self.path.rename(self.away)
        return self._table(shard, cells)

    def sleep(self, seconds):
        self.waits.append(seconds)
        if len(self.waits) == self.waits_away:
            self.away.rename(self.path)


def test_a_store_that_vanishes_for_a_while_gives_the_same_table(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    plain = store.load("train")
    away = Away(store, 4)
    table = store.load("train")
    assert len(away.waits) == 4 and table.keys == plain.keys
    assert all(torch.equal(table.features[cell], plain.features[cell]) for cell in plain.features)


def test_a_store_that_stays_away_stops_with_what_to_do(tmp_path, manifest, fill):
    store = fill(tmp_path, manifest)
    away = Away(store, 10**6)
    with pytest.raises(RunFailed, match="did not come back within 50 s") as caught:
        store.load("train")
    assert "ENOENT" in str(caught.value) and "data.storage_patience" in str(caught.value) and sum(away.waits) == 50


@pytest.mark.parametrize("name", ["samples.json", cell_file(CELL)])
def test_one_missing_file_of_a_store_that_is_there_is_not_waited_for(tmp_path, manifest, fill, name):
    store = fill(tmp_path, manifest)
    waits = []
    store.patience = Patience(seconds=50, clock=lambda: sum(waits), sleep=waits.append)
    (store.path / "train-0001.tar" / name).unlink()
    with pytest.raises(StoreIncomplete, match=name):
        store.load("train")
    assert not waits
