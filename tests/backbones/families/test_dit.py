import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import dit
from diffprobe.backbones.hooks import PrunedModule
from diffprobe.core.errors import ConfigError, WeightsMismatch, WeightsMissing
from tests.backbones.plans import plan_for

KEYS, LABELS = list("abcde"), [0, 3, 9, 3, 1]
TAPS = ["transformer_blocks.0.attn1", "transformer_blocks.1", "transformer_blocks.1.ff", "pos_embed"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dit.tiny(tmp_path_factory.mktemp("dit") / "pipeline")


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Any:
    from diffusers import DiTPipeline

    return DiTPipeline.from_pretrained(tiny)


@pytest.fixture
def load(tiny: Path) -> Callable[..., DiffusionFeatures]:
    def make(**settings: object) -> DiffusionFeatures:
        chosen = {"taps": ["transformer_blocks.1"], "timesteps": [261], "device": "cpu", **settings}
        return DiffusionFeatures.from_pretrained(str(tiny), **chosen)  # type: ignore[arg-type]

    return make


@pytest.fixture
def reference(
    pipeline: Any, plain_hooks: Callable[..., dict], noisy_latents: Callable[..., Tensor], as_map: Callable
) -> Callable[..., dict[str, Tensor]]:
    def run(images: Tensor, labels: list[int]) -> dict[str, Tensor]:
        x_t, times = noisy_latents(pipeline, images, KEYS, 261), torch.full((5,), 261)
        labels = torch.tensor(labels)
        found = plain_hooks(pipeline.transformer, TAPS, x_t, timestep=times, class_labels=labels)
        return {tap: as_map(output) for tap, output in found.items()}

    return run


def test_taps_equal_plain_hooks_on_the_untouched_model(load: Callable, reference: Callable, images: Tensor) -> None:
    found = load(taps=TAPS, condition="label", pool="none")(images, keys=KEYS, labels=LABELS)
    for tap, expected in reference(images, LABELS).items():
        torch.testing.assert_close(found[f"{tap}@t261:label:none"], expected, atol=1e-5, rtol=0)


def test_the_null_class_is_the_one_after_the_last(load: Callable, reference: Callable, images: Tensor) -> None:
    found = load(pool="none")(images, keys=KEYS)["transformer_blocks.1@t261:empty:none"]
    expected = reference(images, [10] * 5)["transformer_blocks.1"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_fixed_class_is_given_by_its_number(load: Callable, images: Tensor) -> None:
    fixed = load(condition="prompt", prompt="3")(images, keys=KEYS)["transformer_blocks.1@t261:prompt:mean"]
    both = load(condition="label", unconditional=True)(images, keys=KEYS, labels=[3] * 5)
    torch.testing.assert_close(both["transformer_blocks.1@t261:label:mean"], fixed, atol=1e-5, rtol=0)
    assert float((both["transformer_blocks.1@t261:empty:mean"] - fixed).abs().max()) > 1e-2


@pytest.mark.parametrize("prompt", ["10", "-1", "tench", "3.5"])
def test_what_is_no_class_is_refused_with_the_range(prompt: str, load: Callable, images: Tensor) -> None:
    with pytest.raises(ConfigError, match="classes") as caught:
        load(condition="prompt", prompt=prompt)(images, keys=KEYS)
    assert "allowed: 0..9" in str(caught.value) and f"'{prompt}'" in str(caught.value)


def test_a_label_out_of_range_is_refused(load: Callable, images: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"\b10\b"):
        load(condition="label")(images, keys=KEYS, labels=[0, 10, 1, 2, 3])


def test_it_takes_no_caption(load: Callable) -> None:
    with pytest.raises(ConfigError, match="empty, label, prompt"):
        load(condition="caption")


def test_the_cut_model_lacks_the_later_blocks(load: Callable) -> None:
    network = load()._backbone.denoiser
    names = set(network.state_dict())
    assert not any(name.startswith(("transformer_blocks.2", "proj_out")) for name in names)
    assert any(name.startswith("transformer_blocks.1.ff") for name in names)
    assert isinstance(network.transformer_blocks[2], PrunedModule) and isinstance(network.proj_out_1, PrunedModule)
    assert not any(value.is_meta for value in (*network.parameters(), *network.buffers()))


def test_its_positions_are_fixed(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="resolution 64") as caught:
        plan_for(str(tiny), taps=["transformer_blocks.0"], timesteps=[0], resolution=64)
    assert "allowed: 32" in str(caught.value)


def test_random_weights_keep_the_positions(load: Callable, images: Tensor) -> None:
    trained, random = load()._backbone.denoiser, load(random_weights=True)._backbone.denoiser
    assert torch.equal(trained.pos_embed.pos_embed, random.pos_embed.pos_embed)
    assert not torch.equal(trained.pos_embed.proj.weight, random.pos_embed.proj.weight)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel.* DiTTransformer2DModel"),
        ("transformer", {"norm_type": "ada_norm"}, "DiTTransformer2DModel.*ada_norm"),
        ("transformer", {"in_channels": 16}, "16 latent channels.* 4"),
        ("vae", {"_class_name": "VQModel"}, "VQModel.* AutoencoderKL"),
    ],
)
def test_checkpoints_of_other_kinds_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["transformer_blocks.0"], timesteps=[0])


def test_a_config_under_the_old_class_name_is_taken(tiny: Path, tmp_path: Path, images: Tensor, load: Callable) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    path = folder / "transformer" / "config.json"
    old = {"_class_name": "Transformer2DModel", "cross_attention_dim": None, "num_vector_embeds": None}
    path.write_text(json.dumps(json.loads(path.read_text()) | old))
    settings: dict[str, Any] = {"taps": ["transformer_blocks.1"], "timesteps": [261], "device": "cpu"}
    (found,) = DiffusionFeatures.from_pretrained(str(folder), **settings)(images, keys=KEYS).values()
    assert torch.equal(found, *load()(images, keys=KEYS).values())


def test_missing_weights_are_named(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsMissing, match=r"missing: transformer \(1 of 2"):
        DiffusionFeatures.from_pretrained(str(folder), taps=["transformer_blocks.0"], timesteps=[0])
