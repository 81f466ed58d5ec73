import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import unet2d
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for

KEYS = ("a/0", "a/1", "b.2")
NORM = "up_blocks.1.attentions.0.group_norm"
TAPS = ["down_blocks.0", "mid_block", NORM, "up_blocks.1", "up_blocks.2.resnets.0"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unet2d.tiny(tmp_path_factory.mktemp("ddpm"))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unet2d.tiny(tmp_path_factory.mktemp("ddim"), n_classes=5, pipeline="DDIMPipeline")


@pytest.fixture
def small(images: Tensor) -> Tensor:
    return torch.nn.functional.avg_pool2d(images[:3], 2)


def load(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen: dict[str, Any] = {"taps": TAPS, "timesteps": [300], "pool": "none", "device": "cpu", **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)


@pytest.mark.parametrize("labels", [None, [0, 4, 2]])
def test_taps_equal_plain_hooks_on_the_pipeline(
    labels: list[int] | None, plain: Path, classes: Path, small: Tensor, hooked: Callable[..., dict[str, Tensor]]
) -> None:
    from diffusers import DDIMPipeline, DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(plain) if labels is None else DDIMPipeline.from_pretrained(classes)
    clean = small * 2 - 1
    noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
    t = torch.full((3,), 300)
    conditioning = {} if labels is None else {"class_labels": torch.tensor(labels)}
    expected = hooked(pipeline.unet, TAPS, pipeline.scheduler.add_noise(clean, noise, t), t, **conditioning)
    condition = "empty" if labels is None else "label"
    found = load(plain if labels is None else classes, condition=condition)(small, keys=KEYS, labels=labels)
    for tap, value in expected.items():
        given = found[f"{tap}@t300:{condition}:none"]
        torch.testing.assert_close(given, value.reshape(given.shape), atol=1e-5, rtol=1e-5)


def test_the_class_changes_the_features_and_a_fixed_one_is_given_by_its_number(classes: Path, small: Tensor) -> None:
    def one(labels: list[int] | None = None, **settings: object) -> Tensor:
        (found,) = load(classes, taps=["mid_block"], **settings)(small, keys=KEYS, labels=labels).values()
        return found

    fixed = one(condition="prompt", prompt="3")
    torch.testing.assert_close(fixed, one([3, 3, 3], condition="label"))
    assert float((fixed - one(condition="prompt", prompt="1")).abs().max()) > 1e-4


@pytest.mark.parametrize("prompt", ["5", "-1", "cat", "1.0"])
def test_what_is_no_class_is_refused(prompt: str, classes: Path, small: Tensor) -> None:
    features = load(classes, taps=["mid_block"], condition="prompt", prompt=prompt)
    with pytest.raises(ConfigError, match=rf"'{prompt}'.*\n.*allowed: 0\.\.4"):
        features(small, keys=KEYS)


def test_labels_outside_the_range_are_refused(classes: Path, small: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"\b7\b.*\n.*allowed: 0\.\.4"):
        load(classes, taps=["mid_block"], condition="label")(small, keys=KEYS, labels=[0, 7, 1])


def test_conditions_are_those_that_the_network_has(plain: Path, classes: Path) -> None:
    with pytest.raises(ConfigError, match="allowed: empty"):
        load(plain, condition="label")
    with pytest.raises(ConfigError, match="allowed: label, prompt"):
        load(classes)


def test_later_blocks_are_not_in_memory(plain: Path) -> None:
    features = load(plain, taps=["up_ft0"])
    names = set(features._backbone.denoiser.state_dict())
    assert any(name.startswith("up_blocks.0") for name in names)
    assert not any(name.startswith(("up_blocks.1", "up_blocks.2", "conv_out")) for name in names)
    assert set(features._backbone.components()) == {"denoiser"}


def test_other_sizes_must_halve_at_every_level(plain: Path) -> None:
    spec = plan_for(str(plain), taps=["mid_block"], timesteps=[0], resolution=24).spec
    assert spec.latent_shape == (3, 24, 24)
    with pytest.raises(ConfigError, match=r"18 .* 4\b.*\n.*resolution=16"):
        plan_for(str(plain), taps=["mid_block"], timesteps=[0], resolution=18)


def test_random_weights_are_another_network(plain: Path, small: Tensor) -> None:
    (trained,), (random,) = (
        load(plain, taps=["mid_block"], random_weights=flag)(small, keys=KEYS).values() for flag in (False, True)
    )
    assert float((trained - random).abs().max()) > 1e-2


def test_a_network_beside_the_index_is_found(plain: Path, small: Tensor, tmp_path: Path) -> None:
    """As in the older repositories on the hub; diffusers reads them so too."""
    from diffusers import DDPMPipeline

    for part in ("unet", "scheduler"):
        shutil.copytree(plain / part, tmp_path, dirs_exist_ok=True)
    shutil.copy(plain / "model_index.json", tmp_path)
    assert DDPMPipeline.from_pretrained(tmp_path).unet.config.sample_size == 16
    one, other = (load(folder, taps=["mid_block"]) for folder in (plain, tmp_path))
    torch.testing.assert_close(one(small, keys=KEYS), other(small, keys=KEYS))
    assert one.fingerprint == other.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 1}, "in_channels: 1; allowed: 3"),
        ({"center_input_sample": True}, "center_input_sample: True; allowed: False"),
        ({"class_embed_type": "timestep"}, "class_embed_type: timestep; allowed: None"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type: fourier; allowed: positional, learned"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel.* UNet2DModel"),
    ],
)
def test_networks_of_other_kinds_are_refused(
    changes: dict[str, object], message: str, plain: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(plain, tmp_path / "ddpm")
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["mid_block"], timesteps=[0])


def test_missing_weights_are_named(plain: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(plain, tmp_path / "ddpm")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="missing: unet"):
        load(folder)
