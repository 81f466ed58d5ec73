import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import pixart
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch, WeightsMissing
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red CAT ", "", "a photo of the moon", "twemoji emoji, blue circle", "dog"]
TAPS = ["transformer_blocks.0.attn2", "transformer_blocks.1", "transformer_blocks.1.ff", "transformer_blocks.2.attn1"]
KINDS: dict[str, dict[str, Any]] = {"alpha": {}, "sigma": {"kind": "sigma"}, "sized": {"sized": True}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("pixart")

    def make(name: str) -> Path:
        return root / name if (root / name).is_dir() else pixart.tiny(root / name, **KINDS[name])

    return make


def edit(folder: Path, part: str, **changes: object) -> None:
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["transformer_blocks.1"], "timesteps": [261], "device": "cpu", **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(KINDS))
def test_taps_equal_plain_hooks_on_the_untouched_model(
    name: str,
    tiny: Callable[[str], Path],
    images: Tensor,
    plain_hooks: Callable,
    noisy_latents: Callable,
    as_map: Callable,
) -> None:
    import diffusers

    found = features(tiny(name), taps=TAPS, condition="caption", pool="none", resolution=32)(
        images, keys=KEYS, captions=CAPTIONS
    )
    kind = diffusers.PixArtSigmaPipeline if name == "sigma" else diffusers.PixArtAlphaPipeline
    pipeline = kind.from_pretrained(tiny(name))
    text, mask, _, _ = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)
    assert text.shape[1] == {"sigma": 300}.get(name, 120)
    sizes: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if name == "sized":
        sizes = {"resolution": torch.tensor([[32.0, 32.0]] * 5), "aspect_ratio": torch.ones(5, 1)}
    expected = plain_hooks(
        pipeline.transformer,
        TAPS,
        noisy_latents(pipeline, images, KEYS, 261),
        encoder_hidden_states=text.detach(),
        encoder_attention_mask=mask,
        timestep=torch.full((5,), 261),
        added_cond_kwargs=sizes,
    )
    for tap in TAPS:
        torch.testing.assert_close(found[f"{tap}@t261:caption:none"], as_map(expected[tap]), atol=1e-5, rtol=0)


def test_the_conditioning_is_in_the_fingerprint(tiny: Callable[[str], Path]) -> None:
    conditioning = {
        name: plan_for(str(tiny(name)), taps=TAPS, timesteps=[0], resolution=64).fingerprint["conditioning"]
        for name in KINDS
    }
    assert conditioning["alpha"] == {"text_tokens": 120, "text": "lower case, stripped"}
    assert conditioning["sigma"] == {"text_tokens": 300, "text": "lower case, stripped"}
    assert conditioning["sized"] == {**conditioning["alpha"], "resolution": [64, 64], "aspect_ratio": 1.0}


def test_texts_change_features_and_their_case_does_not(tiny: Callable[[str], Path], images: Tensor) -> None:
    loaded = features(tiny("alpha"), condition="caption")
    first, second, other = (
        next(iter(loaded(images, keys=KEYS, captions=[text] * 5).values())) for text in ("red cat", " RED Cat", "moon")
    )
    assert torch.equal(first, second)
    assert float((first - other).abs().max()) > 1e-3


def test_the_cut_model_lacks_the_later_blocks(tiny: Callable[[str], Path]) -> None:
    names = set(features(tiny("alpha"))._backbone.denoiser.state_dict())
    assert any(name.startswith("transformer_blocks.1.ff") for name in names)
    assert not any(name.startswith(("transformer_blocks.2", "proj_out")) for name in names)


@pytest.mark.parametrize("tap", ["transformer_blocks.0.attn2.to_k", "caption_projection", "caption_projection.act_1"])
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Callable[[str], Path]) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny("alpha")), taps=[tap], timesteps=[0])


def test_a_resolution_without_whole_tokens_is_refused(tiny: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="resolution 34") as caught:
        plan_for(str(tiny("alpha")), taps=TAPS, timesteps=[0], resolution=34)
    assert "multiples of 4" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"use_additional_conditions": True}, "PixArtSigmaPipeline"),
        ("transformer", {"_class_name": "DiTTransformer2DModel"}, "DiTTransformer2DModel.* PixArtTransformer2DModel"),
        ("text_encoder", {"d_model": 48}, "T5 .* 48 .* 32"),
        ("vae", {"latent_channels": 16}, "4 latent channels.* 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("sigma"), tmp_path / "pipeline")
    edit(folder, part, **changes)
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["transformer_blocks.0"], timesteps=[0])


def test_a_checkpoint_without_its_text_encoder_is_refused(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("alpha"), tmp_path / "pipeline")
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(WeightsMissing, match=r"text_encoder/config\.json"):
        plan_for(str(folder), taps=["transformer_blocks.0"], timesteps=[0])
