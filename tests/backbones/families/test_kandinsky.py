import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import kandinsky
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for

KEYS = ("a/0", "a/1", "b.2")
NORM = "down_blocks.1.attentions.0.group_norm"
TAPS = ["down_blocks.0", NORM, "mid_block", "mid_block.attentions.0.to_q", "up_blocks.0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kandinsky.tiny(tmp_path_factory.mktemp("kandinsky"))


def load(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen: dict[str, Any] = {"taps": TAPS, "timesteps": [300], "pool": "none", "device": "cpu", **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)


def test_taps_equal_plain_hooks_on_the_pipeline(
    folder: Path, images: Tensor, hooked: Callable[..., dict[str, Tensor]]
) -> None:
    from diffusers import KandinskyV22Img2ImgPipeline

    pipeline = KandinskyV22Img2ImgPipeline.from_pretrained(folder)
    with torch.no_grad():
        clean = pipeline.movq.encode(images[:3] * 2 - 1)["latents"]
    noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
    t = torch.full((3,), 300)
    conditioning = {"image_embeds": torch.zeros(3, 20)}
    expected = hooked(
        pipeline.unet,
        TAPS,
        pipeline.scheduler.add_noise(clean, noise, t),
        t,
        encoder_hidden_states=None,
        added_cond_kwargs=conditioning,
    )
    found = load(folder)(images[:3], keys=KEYS)
    for tap, value in expected.items():
        given = found[f"{tap}@t300:empty:none"]
        if value.ndim == 3:
            value = (value if tap == NORM else value.transpose(1, 2)).reshape(given.shape)
        torch.testing.assert_close(given, value, atol=1e-5, rtol=1e-5)


def test_only_what_is_needed_is_in_memory(folder: Path) -> None:
    parts = load(folder, taps=["bottleneck"])._backbone.components()
    assert set(parts) == {"denoiser", "movq"}
    assert not any(name.startswith(("up_blocks", "conv_out")) for name in parts["denoiser"].state_dict())
    assert {name.split(".")[0] for name in parts["movq"].state_dict()} == {"encoder", "quant_conv"}


def test_the_embedding_is_zeros_and_recorded(folder: Path) -> None:
    plan = plan_for(str(folder), taps=["mid_block"], timesteps=[0])
    assert plan.fingerprint["conditioning"] == {"image_embeds": "zeros"}
    assert set(plan.fingerprint["weights"]) == {"denoiser", "movq"}
    with pytest.raises(ConfigError, match="allowed: empty"):
        load(folder, condition="prompt", prompt="cat")


def test_the_embedding_reaches_the_network(folder: Path) -> None:
    backbone = load(folder, taps=["conv_out"])._backbone  # the last module: nothing that runs is pruned
    maps: list[Tensor] = []
    backbone.denoiser.mid_block.register_forward_hook(lambda module, args, output: maps.append(output.clone()))
    x, t = torch.zeros(1, 4, 16, 16), torch.tensor([100])
    zeros = backbone.encode_conditions([""])
    with torch.no_grad():
        for condition in (zeros, {"image_embeds": zeros["image_embeds"] + 1}):
            backbone.denoise(x, t, condition)
    assert float((maps[0] - maps[1]).abs().max()) > 1e-4


def test_sides_that_the_up_blocks_cannot_meet_are_refused(folder: Path) -> None:
    assert plan_for(str(folder), taps=["mid_block"], timesteps=[0], resolution=36).resolution == 36
    with pytest.raises(ConfigError, match=r"34 .* 4\b.*\n.*resolution=32"):
        plan_for(str(folder), taps=["mid_block"], timesteps=[0], resolution=34)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("unet", {"addition_embed_type": "image_hint"}, "addition_embed_type: image_hint; allowed: image"),
        ("unet", {"in_channels": 9}, "9 channels.* 4"),
        ("unet", {"_class_name": "UNet2DModel"}, "UNet2DModel.* UNet2DConditionModel"),
        ("movq", {"_class_name": "AutoencoderKL"}, "AutoencoderKL.* VQModel"),
    ],
)
def test_checkpoints_of_other_kinds_are_refused(
    part: str, changes: dict[str, object], message: str, folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "kandinsky")
    path = other / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(other), taps=["mid_block"], timesteps=[0])


def test_a_missing_part_is_named(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "kandinsky")
    shutil.rmtree(other / "movq")
    with pytest.raises(WeightsMissing, match=r"movq/config\.json"):
        plan_for(str(other), taps=["mid_block"], timesteps=[0])
