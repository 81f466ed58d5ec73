import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sdxl
from diffprobe.core.errors import WeightsMismatch, WeightsMissing
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for

KEYS = ("a/0", "a/1", "b.2")
PROMPTS = ["red cat", "a photo of the moon", "dog"]
INNER = "up_blocks.0.attentions.1.transformer_blocks.1.attn2"
TAPS = ["down_blocks.1", "mid_block", INNER, "up_blocks.1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sdxl.tiny(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Any:
    from diffusers import StableDiffusionXLPipeline

    return StableDiffusionXLPipeline.from_pretrained(folder)


def read(folder: Path, images: Tensor, **settings: object) -> dict[str, Tensor]:
    chosen: dict[str, Any] = {"taps": TAPS, "timesteps": [300], "pool": "none", "device": "cpu", **settings}
    captions = PROMPTS if chosen.get("condition") == "caption" else None
    features = DiffusionFeatures.from_pretrained(str(folder), **chosen)(images[:3], keys=KEYS, captions=captions)
    return {name.partition("@")[0]: value for name, value in features.items()}


@pytest.fixture
def reference(pipeline: Any, hooked: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """Run the pipeline's own parts by hand, as its `__call__` does, on given text embeddings."""
    from diffusers import DDPMScheduler

    @torch.no_grad()
    def run(images: Tensor, states: Tensor, pooled: Tensor) -> dict[str, Tensor]:
        clean = pipeline.vae.encode(images[:3] * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
        t = torch.full((3,), 300)
        noisy = DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(clean, noise, t)
        sizes = pipeline._get_add_time_ids((32, 32), (0, 0), (32, 32), torch.float32, text_encoder_projection_dim=24)
        conditioning = {"text_embeds": pooled.expand(3, -1), "time_ids": sizes.expand(3, -1)}
        states = states.expand(3, -1, -1)
        return hooked(pipeline.unet, TAPS, noisy, t, encoder_hidden_states=states, added_cond_kwargs=conditioning)

    return run


def compare(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected) == set(TAPS)
    for tap, value in expected.items():
        if value.ndim == 3:  # tokens
            value = value.transpose(1, 2).reshape(found[tap].shape)
        torch.testing.assert_close(found[tap], value, atol=1e-5, rtol=1e-5)


def test_taps_equal_plain_hooks_on_the_pipeline(
    folder: Path, pipeline: Any, images: Tensor, reference: Callable[..., dict[str, Tensor]]
) -> None:
    states, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    compare(read(folder, images, condition="caption"), reference(images, states, pooled))


def test_an_empty_text_is_the_pipelines_unconditional_branch(
    folder: Path, pipeline: Any, images: Tensor, reference: Callable[..., dict[str, Tensor]]
) -> None:
    _, states, _, pooled = pipeline.encode_prompt("dog", do_classifier_free_guidance=True)
    assert not states.any() and not pooled.any()
    compare(read(folder, images), reference(images, states, pooled))


def test_one_blank_is_the_empty_prompt_itself(
    folder: Path, pipeline: Any, images: Tensor, reference: Callable[..., dict[str, Tensor]]
) -> None:
    states, _, pooled, _ = pipeline.encode_prompt("", do_classifier_free_guidance=False)
    compare(read(folder, images, condition="prompt", prompt=" "), reference(images, states, pooled))


@pytest.mark.slow
def test_a_checkpoint_without_zeros_encodes_the_empty_text(folder: Path, images: Tensor, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "sdxl")
    edit(other / "model_index.json", force_zeros_for_empty_prompt=False)
    for tap, value in read(other, images).items():
        torch.testing.assert_close(value, read(folder, images, condition="prompt", prompt=" ")[tap])
    plans = [plan_for(str(path), taps=["mid_block"], timesteps=[0]) for path in (folder, other)]
    assert [plan.spec.conditioning["empty_text"] for plan in plans] == ["zeros", "encoded"]
    assert plans[0].fingerprint != plans[1].fingerprint


def test_the_text_changes_the_features(folder: Path, images: Tensor) -> None:
    empty, conditioning = read(folder, images), read(folder, images, condition="caption")
    for tap in TAPS:
        assert float((empty[tap] - conditioning[tap]).abs().max()) > 1e-4


def test_sizes_are_those_of_the_resolution(folder: Path) -> None:
    conditioning = plan_for(str(folder), taps=["mid_block"], timesteps=[0], resolution=40).spec.conditioning
    assert conditioning == {"original_size": [40, 40], "crop": [0, 0], "target_size": [40, 40], "empty_text": "zeros"}


def test_later_blocks_are_not_in_memory(folder: Path) -> None:
    features = DiffusionFeatures.from_pretrained(str(folder), taps=["up_ft0"], timesteps=[0], device="cpu")
    names = set(features._backbone.denoiser.state_dict())
    assert any(name.startswith("up_blocks.0") for name in names)
    assert not any(name.startswith(("up_blocks.1", "up_blocks.2", "conv_out")) for name in names)
    assert set(features._backbone.components()) == {"denoiser", "vae", "text_encoder", "text_encoder_2"}


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"text_encoder": [None, None]}, r"refiner .*\n.*missing: text_encoder"),
        ("model_index.json", {"requires_aesthetics_score": True}, "refiner"),
        ("unet/config.json", {"addition_embed_type": None}, "allowed: text_time"),
        ("unet/config.json", {"cross_attention_dim": 32}, "cross_attention_dim: 32, .* 48"),
        ("unet/config.json", {"addition_time_embed_dim": 4}, "projection_class_embeddings_input_dim: 72, .* 48"),
        ("unet/config.json", {"in_channels": 9}, "9 channels.* 4"),
    ],
)
def test_checkpoints_of_other_kinds_are_refused(
    file: str, changes: dict[str, object], message: str, folder: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(folder, tmp_path / "sdxl")
    edit(other / file, **changes)
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(other), taps=["mid_block"], timesteps=[0])


def test_a_missing_encoder_is_named(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "sdxl")
    (other / "text_encoder_2" / "model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match="missing: text_encoder_2"):
        DiffusionFeatures.from_pretrained(str(other), taps=["mid_block"], timesteps=[0], device="cpu")
