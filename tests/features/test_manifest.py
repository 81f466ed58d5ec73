"""What fixes a store's content is digested, everything else is not; differences are named."""

import json

import pytest

from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.features.manifest import (
    SCHEMA_VERSION,
    Manifest,
    ShardEntry,
    cell_file,
    differences,
    kind_of,
    stored_counts,
)
from tests.artifacts import edit


def test_versions_and_names_are_recorded_but_not_digested(manifest, changed_manifest):
    other = changed_manifest(recorded={**manifest.recorded, "versions": {"torch": "0.0"}, "backbone": "elsewhere"})
    assert other.digest == manifest.digest
    assert differences(manifest, other) == []


def test_the_order_of_keys_is_not_digested(manifest, changed_manifest):
    assert changed_manifest(backbone=dict(reversed(manifest.backbone.items()))).digest == manifest.digest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backbone", {"weights": "ab" * 32, "seed": 1, "taps": ["mid_block", "up_blocks.0"], "timesteps": [10]}),
        ("cells", {"mid_block@t10:empty:mean": 3}),
        ("data", {"shard_set": "ee" * 32, "fields": {"label": "label"}, "on_error": "raise"}),
        ("shards", (ShardEntry(file="train-0000.tar", split="train", n=6, sha256="0" * 64),)),
        ("dtype", "float16"),
    ],
)
def test_every_content_field_changes_the_digest(manifest, changed_manifest, field, value):
    assert changed_manifest(**{field: value}).digest != manifest.digest


def test_written_and_read_back_it_is_the_same(manifest, tmp_path):
    manifest.write(tmp_path / "manifest.json")
    assert Manifest.read(tmp_path / "manifest.json") == manifest


def test_tuples_compare_like_the_lists_that_json_makes_of_them(manifest, changed_manifest):
    assert changed_manifest(backbone={**manifest.backbone, "timesteps": (10,)}) == manifest


@pytest.mark.parametrize(("old", "new"), [('"seed": 0', '"seed": 5'), ('"cat"', '"cow"')])
def test_a_manifest_changed_by_hand_is_refused(manifest, tmp_path, old, new):
    path = tmp_path / "manifest.json"
    manifest.write(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(SchemaError, match="modified"):
        Manifest.read(path)


def test_a_manifest_without_a_part_is_refused(manifest, tmp_path):
    from diffprobe.core.artifact import write_artifact

    write_artifact(tmp_path / "m.json", {"cells": {}}, kind="feature_store", schema_version=SCHEMA_VERSION)
    with pytest.raises(SchemaError, match="not a complete manifest.*recorded"):
        Manifest.read(tmp_path / "m.json")


def test_a_store_with_more_cells_and_shards_serves_a_smaller_request(manifest, changed_manifest):
    smaller = changed_manifest(
        cells={"mid_block@t10:empty:mean": 3},
        backbone={**manifest.backbone, "taps": ["mid_block"]},
        shards=manifest.shards[:2],
    )
    assert differences(manifest, smaller) == []
    assert differences(smaller, manifest) != []


def test_differences_name_setting_store_and_request(manifest, changed_manifest):
    asked = changed_manifest(
        backbone={**manifest.backbone, "seed": 3, "weights": "ef" * 32},
        cells={**manifest.cells, "up_blocks.1@t10:empty:mean": 4},
        data={**manifest.data, "shard_set": "01" * 32},
        shards=(*manifest.shards, ShardEntry(file="test-0000.tar", split="test", n=2, sha256="9" * 64)),
    )
    lines = "\n".join(differences(manifest, asked))
    assert "backbone.seed: store 0, requested 3" in lines
    assert "backbone.weights: store abababab.., requested efefefef.." in lines
    assert "data.shard_set: store cdcdcdcd.., requested 01010101.." in lines
    assert "cells: missing in the store: up_blocks.1@t10:empty:mean" in lines
    assert "shards: missing in the store: test-0000.tar; its splits are train, val" in lines
    assert len(differences(manifest, asked)) == 5


def test_another_sample_count_or_checksum_of_a_shard_is_a_difference(manifest, changed_manifest):
    first, *rest = manifest.shards
    fewer = changed_manifest(shards=(ShardEntry(file=first.file, split="train", n=2, sha256=first.sha256), *rest))
    (line,) = differences(manifest, fewer)
    assert "train-0000.tar" in line and "store train 11, val 5, requested train 6, val 5" in line


def test_a_wider_cell_is_a_difference(manifest, changed_manifest):
    cells = {**manifest.cells, "mid_block@t10:empty:mean": 4}
    assert differences(manifest, changed_manifest(cells=cells)) == [
        "width of mid_block@t10:empty:mean: store 3, requested 4"
    ]


def test_cells_that_would_share_a_file_are_refused(changed_manifest):
    assert cell_file("a/b@t1:empty:mean") == cell_file("a_b@t1:empty:mean")
    with pytest.raises(ConfigError, match="two cells have the same file"):
        changed_manifest(cells={"a/b@t1:empty:mean": 1, "a_b@t1:empty:mean": 1})


def test_nothing_of_the_machine_is_in_the_file(manifest, tmp_path):
    manifest.write(tmp_path / "manifest.json")
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "manifest.json").read_text()))


def test_stored_counts(manifest):
    assert stored_counts(manifest) == "train 11, val 5"


def test_the_kind_is_part_of_what_a_store_is(tmp_path, manifest, latent_manifest, changed_manifest):
    same = changed_manifest(kind="latent_store")
    assert same.digest != manifest.digest
    latent_manifest.write(tmp_path / "m.json")
    assert kind_of(tmp_path / "m.json") == "latent_store"
    assert Manifest.read(tmp_path / "m.json", kind="latent_store") == latent_manifest
    with pytest.raises(SchemaError, match="expected 'feature_store'"):
        Manifest.read(tmp_path / "m.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"header": {"kind": "result"}}'])
def test_another_file_has_no_kind_of_store(tmp_path, text):
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(SchemaError):
        kind_of(tmp_path / "m.json")


@pytest.mark.parametrize("n", [-1, 10**400])
def test_a_number_of_samples_that_no_disk_holds_is_refused(tmp_path, manifest, n):
    manifest.write(tmp_path / "m.json")
    shards = json.loads((tmp_path / "m.json").read_text())["shards"]
    edit(tmp_path / "m.json", shards=[{**shards[0], "n": n}])
    with pytest.raises(SchemaError, match=f"not a complete manifest.*'{shards[0]['file']}' has"):
        Manifest.read(tmp_path / "m.json")
