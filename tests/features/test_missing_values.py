"""Samples without what the condition needs: known from the index, and the two other choices."""

import json
from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.features.extract import extract
from diffprobe.features.live import LiveFeatures
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request
from diffprobe.features.stored import StoredFeatures
from diffprobe.features.verify import verify_folder
from diffprobe.shards.index import build_index
from diffprobe.shards.reader import read_shard
from diffprobe.shards.writer import write_shard


@pytest.fixture
def gappy(tiny_shards: Path, tmp_path: Path) -> Path:
    """Two shards of train; the fifth sample has a blank caption, the sixth no class and no style."""
    images = [raw.files["png"] for raw in read_shard(tiny_shards / "train-0000.tar")]
    records = [{"label": 0, "class_name": "a", "caption": f"c{i}", "attributes": {"style": "s"}} for i in range(6)]
    records[4]["caption"] = " "
    records[5] = {"caption": "c5"}
    members = [
        (f"k{i}", {"png": image, "json": json.dumps(r).encode()})
        for i, (image, r) in enumerate(zip(images, records, strict=True))
    ]
    root = tmp_path / "gappy"
    root.mkdir()
    write_shard(root / "train-0000.tar", members[:2])
    write_shard(root / "train-0001.tar", members[2:])
    build_index(root, name="gappy", licence="none")
    return root


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"features_condition": "caption"},
            r"needs the caption .* 1 of 6 samples of split 'train'.\n  first: 'k4' in train-0001",
        ),
        (
            {"features_condition": "template", "features_prompt": "a {class_name}"},
            r"needs the class_name .*\n  first: 'k5'",
        ),
        ({"features_condition": "template", "features_prompt": "a {style}"}, r"needs the style .*\n  first: 'k5'"),
        ({"features_condition": "caption", "data_limit": 5}, "at least 1 of 5 samples"),
    ],
)
@pytest.mark.parametrize("source", ["stored", "live"])
def test_a_gap_is_known_before_the_backbone_is_loaded(configs, gappy, changes, message, source, monkeypatch):
    parts = configs(data_path=str(gappy), features_source=source, **changes)
    monkeypatch.setattr("diffprobe.backbones.extractor.DiffusionFeatures.from_plan", None)  # must not be reached
    with pytest.raises(ConfigError, match=message) as caught:
        if source == "live":
            features = LiveFeatures(*parts)
            features.request.splits = ("train",)
            features.setup()
        else:
            extract(*parts, splits=["train"], progress=False)
    assert "features.missing=leave_out" in str(caught.value.fix)


def test_a_gap_outside_of_what_is_read_does_not_matter(configs, gappy):
    request = Request(*configs(data_path=str(gappy), features_condition="caption", data_limit=4), ["train"])
    request.check_values()
    Request(*configs(data_path=str(gappy)), ["train"]).check_values()


def test_another_caption_field_is_read_from_the_shards(configs, gappy):
    from diffprobe.config.schema import FieldsConfig

    changes = {"features_condition": "caption", "data_fields": FieldsConfig(caption="class_name")}
    with pytest.raises(ConfigError, match=r"1 of 6 samples of split 'train'.\n  first: 'k5'"):
        Request(*configs(data_path=str(gappy), **changes), ["train"]).check_values()


def test_an_unknown_column_is_named_at_once(configs, gappy):
    changes = {"features_condition": "template", "features_prompt": "a {stile}"}
    with pytest.raises(UnknownName, match="unknown column 'stile'.\n  nearest: style"):
        Request(*configs(data_path=str(gappy), **changes), ["train"]).check_values()


def test_the_choices_are_settings_of_the_store(configs, gappy):
    stores = {}
    for missing in ("empty", "leave_out"):
        parts = configs(data_path=str(gappy), features_condition="caption", features_missing=missing)
        stores[missing] = FeatureStore.open(extract(*parts, splits=["train"], progress=False))
        assert verify_folder(stores[missing].path) == []
    empty, left_out = (stores[name].load("train") for name in ("empty", "leave_out"))
    assert empty.keys == [f"k{i}" for i in range(6)] and left_out.keys == ["k0", "k1", "k2", "k3", "k5"]
    for cell in empty.features:
        torch.testing.assert_close(empty.features[cell][[0, 1, 2, 3, 5]], left_out.features[cell], atol=1e-5, rtol=0)
    samples = stores["leave_out"].samples(stores["leave_out"].manifest.shards[1])
    assert samples["left_out"] == [{"key": "k4", "message": "train-0001.tar, sample 'k4': no caption."}]
    plain = FeatureStore.open(extract(*configs(data_path=str(gappy)), splits=["train"], progress=False)).load("train")
    cells = [cell.replace("caption", "empty") for cell in empty.features]
    for cell, other in zip(empty.features, cells, strict=True):
        torch.testing.assert_close(empty.features[cell][4], plain.features[other][4], atol=1e-5, rtol=0)


def test_live_features_leave_the_same_samples_out(configs, gappy):
    parts = configs(data_path=str(gappy), features_condition="caption", features_missing="leave_out")
    extract(*parts, splits=["train"], progress=False)
    stored, live = StoredFeatures(*parts), LiveFeatures(*parts)
    stored.request.splits = live.request.splits = ("train",)
    assert live.table("train").keys == stored.table("train").keys


def test_a_choice_without_effect_is_refused(configs):
    with pytest.raises(ConfigError, match="missing=empty has no effect with condition=empty"):
        configs(features_missing="empty")
