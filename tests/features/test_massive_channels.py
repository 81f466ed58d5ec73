"""Massive channels: found by the rule on training images, treated before pooling, listed in the manifest."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.massive import MassiveChannels
from diffprobe.cli.main import main
from diffprobe.config.massive import MassiveConfig
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError, SchemaError, StoreIncomplete, StoreMismatch
from diffprobe.features.extract import extract
from diffprobe.features.latent_cache import latent_manifest
from diffprobe.features.live import LiveFeatures
from diffprobe.features.massive_channels import BATCH, channels_of, from_recorded, notes, refuse_treated, to_recorded
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request

PLANTED = 5
MID, DOWN = "mid_block@t400:empty:mean", "down_blocks.0@t400:empty:mean"
CLIP = MassiveConfig(treatment="clip", images=10)
DROP = MassiveConfig(treatment="drop", images=10)


@pytest.fixture(scope="module")
def planted(tiny_sd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny backbone with one massive channel in the output of its mid block."""
    folder = shutil.copytree(tiny_sd, tmp_path_factory.mktemp("planted") / "model")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["mid_block.resnets.1.conv2.bias"][PLANTED] += 300.0
    save_file(weights, file)
    return folder


Ask = Callable[..., tuple[BackboneConfig, DataConfig, FeaturesConfig]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("massive")


@pytest.fixture(scope="module")
def asked(planted: Path, tiny_shards: Path, root: Path) -> Ask:
    """Make configs over the planted backbone."""

    def make(massive: MassiveConfig = CLIP, **changes: object) -> tuple[BackboneConfig, DataConfig, FeaturesConfig]:
        parts: dict[str, dict[str, Any]] = {
            "backbone": {"path": str(planted), "device": "cpu"},
            "data": {"path": str(tiny_shards), "batch_size": 4},
            "features": {
                "taps": ("mid_block", "down_blocks.0"), "timesteps": (400,), "store": str(root / "stores"),
                "massive": massive,
            },
        }  # fmt: skip
        for name, value in changes.items():
            part, _, key = name.partition("_")
            parts[part][key] = value
        return (
            BackboneConfig(**parts["backbone"]), DataConfig(**parts["data"]), FeaturesConfig(**parts["features"])
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def clipped(asked: Ask, root: Path) -> tuple[FeatureStore, list[str]]:
    """A store with clipped channels, by way of cached latents, and what the extraction printed."""
    lines: list[str] = []
    path = extract(*asked(features_latent_cache=str(root / "latents")), progress=False, announce=lines.append)
    return FeatureStore.open(path), lines


@pytest.mark.slow
def test_planted_channels_are_listed_and_clipped_and_no_other_changes(
    asked: Ask, clipped: tuple[FeatureStore, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    store, lines = clipped
    found = from_recorded(store.manifest.recorded, store.cells)
    plain = LiveFeatures(*asked(MassiveConfig(), features_pool="none", features_source="live"))
    train, val, name = plain.table("train"), plain.table("val"), MID.replace("mean", "none")
    size = train.features[name][: CLIP.images].abs().double().mean((0, 2, 3))
    assert list(found[MID].channels) == [PLANTED] and found[DOWN].channels == {}
    assert found[MID].channels[PLANTED] == pytest.approx(float(size[PLANTED] / size.median()), rel=1e-5)
    assert found[MID].limit == pytest.approx(20 * float(size.median()), rel=1e-5)
    maps = val.features[name].clone()
    assert float(maps[:, PLANTED].abs().mean()) > found[MID].limit
    maps[:, PLANTED] = maps[:, PLANTED].clamp(-found[MID].limit, found[MID].limit)
    torch.testing.assert_close(store.load("val", [MID]).features[MID], maps.mean((2, 3)), atol=1e-5, rtol=1e-5)
    rest = val.features[DOWN.replace("mean", "none")].mean((2, 3))
    torch.testing.assert_close(store.load("val", [DOWN]).features[DOWN], rest, atol=1e-5, rtol=1e-5)
    assert store.manifest.recorded["massive"]["keys"] == train.keys[: CLIP.images]
    assert set(store.manifest.recorded["massive"]["taps"]) == {"mid_block", "down_blocks.0"}
    assert store.manifest.data["massive"] == {
        "rules": 1, "treatment": "clip", "ratio": 20.0, "images": 10, "split": "train"
    }  # fmt: skip
    assert main(["store", "show", str(store.path)]) == 0
    shown = capsys.readouterr().out
    assert f"{MID}: {PLANTED} (" in shown and f"{DOWN}: none; limit" in shown
    assert any(MID in line and f" {PLANTED} (" in line for line in lines)
    assert any("no massive channels at a ratio of 20" in line and DOWN in line for line in lines)


def test_live_features_are_those_of_the_store_whatever_the_batches_are(
    asked: Ask, clipped: tuple[FeatureStore, list[str]]
) -> None:
    store, _ = clipped
    live = LiveFeatures(*asked(features_source="live", data_batch_size=3))
    table, kept = live.table("val"), store.load("val", store.cells)
    for cell in store.cells:
        torch.testing.assert_close(table.features[cell], kept.features[cell], atol=1e-5, rtol=0)
    assert live.request.massive is not None
    assert live.request.massive[0] == from_recorded(store.manifest.recorded, store.cells)  # bit for bit
    assert live.request.narrowed([MID]).massive == ({MID: live.request.massive[0][MID]}, live.request.massive[1])


def test_each_draw_and_branch_is_treated(asked: Ask) -> None:
    live = LiveFeatures(
        *asked(
            DROP, features_source="live", features_draws=2, features_keep_draws=True, features_condition="caption",
            features_unconditional=True, features_timesteps=(20, 400),
        )
    )  # fmt: skip
    features = live.table("val").features
    assert len(features) == 8
    for cell, values in features.items():
        assert bool((values[..., PLANTED] == 0).all()) == cell.startswith("mid_block")
        assert bool(values[..., PLANTED + 1].any())


def test_parts_and_interrupted_extractions_give_the_bytes_of_one(
    asked: Ask, clipped: tuple[FeatureStore, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = clipped
    parts, lines = asked(features_store=str(tmp_path)), list[str]()
    extract(*parts, process=(1, 2), progress=False)
    monkeypatch.setattr(Request, "_find_massive", None)  # later parts read what the first one listed
    store = FeatureStore.open(extract(*parts, progress=False, announce=lines.append))
    assert not store.missing() and any(f" {PLANTED} (" in line for line in lines)
    assert (store.path / "manifest.json").read_bytes() == (whole.path / "manifest.json").read_bytes()
    files = sorted(file.relative_to(whole.path) for file in whole.path.rglob("*.safetensors"))
    assert files and all((whole.path / file).read_bytes() == (store.path / file).read_bytes() for file in files)
    again = FeatureStore.find(parts[2].store, Request(*parts).manifest)
    assert again.path == store.path  # a request finds it without looking for channels


def test_the_rule_is_part_of_the_identity_and_latents_are_shared(
    asked: Ask, clipped: tuple[FeatureStore, list[str]]
) -> None:
    store, _ = clipped
    plain = Request(*asked(MassiveConfig()))
    assert "massive" not in plain.manifest.data | plain.manifest.recorded
    assert latent_manifest(plain).digest == latent_manifest(Request(*asked())).digest
    for other in (MassiveConfig(), replace(CLIP, ratio=30.0), replace(CLIP, images=9), DROP):
        with pytest.raises(StoreMismatch, match="massive"):
            FeatureStore.find(store.path.parent, Request(*asked(other)).manifest)
    command = Request(*asked(replace(CLIP, ratio=30.0))).command
    assert "features.massive.treatment=clip" in command and "features.massive.ratio=30" in command
    held = Request(*asked(data_val_split="held", data_val_fraction=0.3)).manifest.data["massive"]
    assert held["holdout"]["fraction"] == 0.3


def test_what_cannot_work_is_refused(asked: Ask) -> None:
    with pytest.raises(ConfigError, match=r"massive.images=17: 16 images of split 'train'"):
        extract(*asked(replace(CLIP, images=17)), progress=False)
    with pytest.raises(ConfigError, match=r"data.limit=4"):
        extract(*asked(data_limit=4), progress=False)
    backbone, _, chosen = asked()
    features = DiffusionFeatures.from_config(backbone, chosen)
    with pytest.raises(ConfigError, match="massive"):
        features(torch.rand(1, 3, 32, 32), keys=["a"])
    attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn2/probs"
    for changes in (
        {"features_taps": (attention,)},
        {"backbone_path": "pixels", "features_taps": ("pixels",), "features_timesteps": (0,)},
        {"backbone_part": "vae", "features_taps": ("latents",), "features_timesteps": (0,)},
    ):
        with pytest.raises(ConfigError, match="massive"):
            _ = Request(*asked(**changes)).plan
    with pytest.raises(ConfigError, match="as it is"):
        refuse_treated({"massive": {"treatment": "drop"}}, "this")
    refuse_treated({}, "this")


def test_sums_do_not_depend_on_the_batches_and_records_are_read_back() -> None:
    values = torch.rand(BATCH + 3, 6, generator=torch.Generator().manual_seed(0))
    values[:, 2] *= 100
    one = channels_of([{"a@t1": values}], CLIP)
    two = channels_of([{"a@t1": values[:BATCH]}, {"a@t1": values[BATCH:]}], CLIP)
    assert one == two and list(one["a@t1"].channels) == [2]
    recorded = {"massive": to_recorded(one, ["k"])}
    assert from_recorded(recorded, ["a@t1"]) == one
    for broken in ({}, {"massive": {"taps": {"a": {"a@t1": {"channels": []}}}}}):
        with pytest.raises(SchemaError):
            from_recorded(broken, ["a@t1"])
    with pytest.raises(ConfigError):
        channels_of([], CLIP)
    many = MassiveChannels(dict.fromkeys(range(10), 21.0), 1.0)
    assert "and 2 more" in notes({"a@t1": many}, DROP)[0] and "set to 0" in notes({"a@t1": many}, DROP)[0]


def test_views_of_the_training_images_have_the_channels_of_the_images(asked: Ask) -> None:
    parts = asked(DROP, features_views=ViewsConfig(n=1, flip=1.0), data_limit=10)
    store = FeatureStore.open(extract(*parts, splits=["train"], progress=False))
    (view,) = Request(*parts, ["train"]).of_views()
    viewed = FeatureStore.find(store.path.parent, view.manifest)
    assert viewed.path != store.path
    assert viewed.manifest.recorded["massive"] == store.manifest.recorded["massive"]
    assert not bool(viewed.load("train", [MID]).features[MID][:, PLANTED].any())


def test_channels_are_taken_from_another_store_of_the_backbone(
    asked: Ask, clipped: tuple[FeatureStore, list[str]], tmp_path: Path
) -> None:
    source, _ = clipped
    taken = MassiveConfig(treatment="clip", channels_of=str(source.path))
    parts, lines = asked(taken, features_store=str(tmp_path), data_limit=5), list[str]()  # too few to find them
    store = FeatureStore.open(extract(*parts, progress=False, announce=lines.append))
    assert store.manifest.recorded["massive"] == source.manifest.recorded["massive"]
    assert set(store.manifest.data["massive"]) == {"rules", "treatment", "channels"}
    assert any(MID in line and f" {PLANTED} (" in line for line in lines)
    kept = source.load("val", [MID]).features[MID]
    torch.testing.assert_close(store.load("val", [MID]).features[MID], kept, atol=1e-5, rtol=0)
    live = LiveFeatures(*asked(taken, features_source="live"), cells=[MID])
    torch.testing.assert_close(live.table("val").features[MID], kept, atol=1e-5, rtol=0)
    one = Request(*asked(taken, features_taps=("mid_block",), features_store=str(tmp_path), data_limit=5))
    assert FeatureStore.find(tmp_path, one.manifest).path == store.path  # a store of more cells serves it


def test_channels_of_another_backbone_cell_or_store_are_not_taken(
    asked: Ask, clipped: tuple[FeatureStore, list[str]], tmp_path: Path
) -> None:
    taken = MassiveConfig(treatment="drop", channels_of=str(clipped[0].path))
    for changes, fact in (
        ({"features_seed": 3}, "seed"),
        ({"features_timesteps": (401,)}, "t401"),
        ({"backbone_random_weights": True}, "random_weights"),
    ):
        with pytest.raises(StoreMismatch, match=fact):
            _ = Request(*asked(taken, **changes)).massive
    with pytest.raises(StoreIncomplete, match="manifest"):
        _ = Request(*asked(replace(taken, channels_of=str(tmp_path)))).manifest
    plain = extract(*asked(MassiveConfig(), features_store=str(tmp_path)), splits=["val"], progress=False)
    with pytest.raises(StoreMismatch, match="no massive channels"):
        _ = Request(*asked(replace(taken, channels_of=str(plain)))).manifest
