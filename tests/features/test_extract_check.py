"""What an extraction would write is known without weights, and is what it writes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.config.massive import MassiveConfig
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig, DataConfig, FeaturesConfig
from diffprobe.config.views import ViewsConfig
from diffprobe.core.errors import ConfigError, RunFailed, UnknownName, UnknownTap, WeightsMissing
from diffprobe.features.extract import extract
from diffprobe.features.extract_check import check_images, check_prompts
from diffprobe.features.extract_prompts import extract_prompts

Parts = tuple[BackboneConfig, DataConfig, FeaturesConfig]


@pytest.fixture
def parts(tiny_sd: Path, tiny_shards: Path, tmp_path: Path) -> Callable[..., Parts]:
    def make(**features: Any) -> Parts:
        own: dict[str, Any] = {"taps": ("mid_block",), "timesteps": (20, 400), "store": str(tmp_path / "stores")}
        data = DataConfig(path=str(tiny_shards), batch_size=8)
        return BackboneConfig(path=str(tiny_sd), device="cpu"), data, FeaturesConfig(**{**own, **features})

    return make


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(DiffusionFeatures, "from_plan", refuse)
    monkeypatch.setattr("diffprobe.features.extract_prompts.PromptFeatures", refuse)


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@pytest.mark.slow
def test_a_new_a_begun_and_a_complete_store(parts: Callable[..., Parts], tmp_path: Path) -> None:
    asked = parts(draws=2, condition="caption", unconditional=True)
    before = files(tmp_path)
    lines = check_images(*asked)
    assert files(tmp_path) == before  # nothing is written
    assert lines[0].endswith(", new") and "24 images x 4 cells" in lines[1] and "free)" in lines[1]
    assert lines[2:] == ["denoiser passes: 192 (8 per image)"]  # 2 timesteps, 2 draws, 2 branches
    announced: list[str] = []
    path = extract(*asked, process=(1, 2), progress=False, announce=announced.append)
    assert lines[0] == f"store: {path}, new"
    size = lines[1].partition(" (")[0].partition("about")[2]
    assert any("to write: 24 images x 4 cells" in line and f"about{size} (" in line for line in announced)
    lines = check_images(*asked, process=(0, 2))
    n, shards = 24 - written(path), 7 - len(list(path.rglob("samples.json")))
    assert lines[0] == f"store: {path}, {7 - shards} of 7 shards are there"
    assert f"to write: {n} images" in lines[1] and lines[2] == f"of them by process 0/2: {n} in {shards} shards"
    assert "of them by process 1/2: 0 in 0 shards" in check_images(*asked, process=(1, 2))
    extract(*asked, progress=False)
    assert check_images(*asked) == [f"store: {path}, complete"]


def written(store: Path) -> int:
    return sum(len(json.loads(file.read_text())["keys"]) for file in store.rglob("samples.json"))


@pytest.mark.usefixtures("no_weights")
def test_views_latents_and_massive_channels_are_counted(parts: Callable[..., Parts], tmp_path: Path) -> None:
    lines = check_images(
        *parts(
            views=ViewsConfig(n=2, flip=0.5), latent_cache=str(tmp_path / "latents"),
            massive=MassiveConfig(treatment="drop", images=9),
        )
    )  # fmt: skip
    assert [line.split(":")[0] for line in lines[:6]] == ["store"] * 3 + ["latents"] * 3
    assert "latents: 7 of 7 shards to encode" in lines[3] and "latents: 3 of 3 shards to encode" in lines[4]
    assert "to write: 56 images x 2 cells" in lines[6] and "denoiser passes: 112 (2 per image)" in lines
    assert "before them the passes of 9 images of 'train', to find massive channels" in lines
    assert not files(tmp_path)


@pytest.mark.usefixtures("no_weights")
def test_what_extraction_refuses_before_it_loads_weights_is_refused(
    parts: Callable[..., Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    for features, error, fact in (
        ({"taps": ("mid_blok",)}, UnknownTap, "mid_block"),
        ({"massive": MassiveConfig(treatment="drop", images=17)}, ConfigError, "images=17"),
        ({"condition": "template", "prompt": "a {size} cat"}, UnknownName, "size"),
    ):
        with pytest.raises(error, match=fact):
            check_images(*parts(**features))
    with pytest.raises(ConfigError, match="2/2"):
        check_images(*parts(), process=(2, 2))
    monkeypatch.setattr("diffprobe.features.disk_space._free", lambda folder: 10)
    with pytest.raises(RunFailed, match="10 B"):
        check_images(*parts())


def test_a_checkpoint_of_the_hub_is_not_downloaded(
    parts: Callable[..., Parts], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def hub(*_: object, local_files_only: bool, **__: object) -> str:
        asked.append(local_files_only)
        raise OSError("not in the cache")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("snapshot_download", "hf_hub_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", hub)
    backbone, data, features = parts()
    prompts = PromptExtraction(
        backbone=BackboneConfig(path="owner/name"), prompts=str(tmp_path / "none.txt"),
        features=PromptFeaturesConfig(taps=("mid_block",), timesteps=(499,)),
    )  # fmt: skip
    with pytest.raises(WeightsMissing, match="hf download owner/name"):
        check_images(BackboneConfig(path="owner/name"), data, features)
    with pytest.raises(WeightsMissing, match=r"weights\.safetensors"):
        check_images(replace(backbone, denoiser_weights="owner/name:weights.safetensors"), data, features)
    with pytest.raises(WeightsMissing, match="owner/name"):
        check_prompts(prompts)
    assert asked == [True] * 3


def test_controls_without_a_denoiser_have_no_passes(parts: Callable[..., Parts]) -> None:
    _, data, features = parts(taps=("pixels",), timesteps=(0,))
    assert not any("passes" in line for line in check_images(BackboneConfig(path="pixels"), data, features))


def test_prompts(tiny_sd: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red cat\na dog\n")
    config = PromptExtraction(
        backbone=BackboneConfig(path=str(tiny_sd), device="cpu"), prompts=str(tmp_path / "prompts.txt"),
        features=PromptFeaturesConfig(taps=("mid_block",), timesteps=(499,), store=str(tmp_path / "stores")),
        sampling=SamplingConfig(steps=2, seeds=3, guidance=2.0),
    )  # fmt: skip
    before = files(tmp_path)
    lines = check_prompts(config)
    assert files(tmp_path) == before
    path = extract_prompts(config, progress=False)
    assert lines[0] == f"store: {path}, new" and "2 prompts x 3 seeds, ddim with 2 steps" in lines[1]
    assert "to write: 6 samples x 1 cells" in lines[2] and lines[3] == "denoiser passes: 24"
    assert check_prompts(config) == [f"store: {path}, complete"]
