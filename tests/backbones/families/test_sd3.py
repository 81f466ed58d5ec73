import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sd3
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the moon", "twemoji emoji, blue circle", "dog"]
TAPS = {  # tap -> which of its outputs is the image; None for the only one
    "transformer_blocks.0": 1,
    "transformer_blocks.0.attn2": None,
    "transformer_blocks.1.attn": 0,
    "transformer_blocks.1.norm1": 0,
    "transformer_blocks.2.ff": None,
    "transformer_blocks.2": 1,
}
KINDS: dict[str, dict[str, Any]] = {"whole": {}, "without_t5": {"t5": False}, "as_many": {"clip_tokens": 33}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("sd3")

    def make(name: str) -> Path:
        return root / name if (root / name).is_dir() else sd3.tiny(root / name, **KINDS[name])

    return make


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["transformer_blocks.1"], "timesteps": [261], "device": "cpu", **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@pytest.fixture
def reference(plain_hooks: Callable, noisy_latents: Callable) -> Callable[..., dict[str, Any]]:
    def run(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Any]:
        from diffusers import StableDiffusion3Pipeline

        none = {} if (folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
        pipeline = StableDiffusion3Pipeline.from_pretrained(folder, **none)
        text, _, pooled, _ = pipeline.encode_prompt(CAPTIONS, None, None, do_classifier_free_guidance=False)
        return plain_hooks(
            pipeline.transformer,
            taps,
            hidden_states=noisy_latents(pipeline, images, KEYS, 261),
            encoder_hidden_states=text.detach(),
            pooled_projections=pooled.detach(),
            timestep=torch.full((5,), 261.0),
        )

    return run


@pytest.mark.parametrize(("name", "side"), [("whole", 32), ("without_t5", 32), ("as_many", 68)])
def test_taps_equal_plain_hooks_on_the_untouched_model(
    name: str, side: int, tiny: Callable, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """At 68 px there are 17 x 17 image tokens and as many of text, so that only the layout tells them apart."""
    images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear")
    loaded = features(tiny(name), taps=list(TAPS), condition="caption", pool="none", resolution=side)
    found = loaded(images, keys=KEYS, captions=CAPTIONS)
    outputs = reference(tiny(name), images, list(TAPS))
    if name == "as_many":
        text, image = outputs["transformer_blocks.0"]
        assert text.shape == image.shape
    for tap, place in TAPS.items():
        expected = as_map(outputs[tap] if place is None else outputs[tap][place])
        torch.testing.assert_close(found[f"{tap}@t261:caption:none"], expected, atol=1e-5, rtol=0)


def test_the_heads_of_a_normalised_query_stand_side_by_side(
    tiny: Callable, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    tap = "transformer_blocks.1.attn.norm_q"
    found = features(tiny("whole"), taps=[tap], condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    heads = reference(tiny("whole"), images, [tap])[tap]  # batch, heads, tokens, width
    expected = as_map(torch.cat(heads.unbind(1), dim=-1))
    torch.testing.assert_close(found[f"{tap}@t261:caption:none"], expected, atol=1e-5, rtol=0)


def test_the_conditioning_is_in_the_fingerprint(tiny: Callable) -> None:
    conditioning = [
        plan_for(str(tiny(n)), taps=["*"], timesteps=[0]).fingerprint["conditioning"] for n in ("whole", "without_t5")
    ]
    assert conditioning == [{"clip_tokens": 24, "t5_tokens": 256, "t5": kind} for kind in ("text", "zeros")]


def test_timesteps_run_to_noise_alone(tiny: Callable, images: Tensor) -> None:
    first, second = (
        next(iter(features(tiny("whole"), timesteps=[1000])(x, keys=KEYS).values())) for x in (images, 1 - images)
    )
    torch.testing.assert_close(first, second, atol=1e-5, rtol=0)


def test_texts_change_features_and_their_encoders_are_freed(tiny: Callable, images: Tensor) -> None:
    loaded = features(tiny("whole"), condition="prompt", prompt="red cat", unconditional=True)
    assert {"text_encoder", "text_encoder_2", "text_encoder_3"} <= set(loaded._backbone.components())
    first = loaded(images, keys=KEYS)
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    prompt, empty = first.values()
    assert float((prompt - empty).abs().max()) > 1e-3
    torch.testing.assert_close(loaded(images, keys=KEYS), first)


def test_the_cut_model_lacks_the_later_blocks(tiny: Callable) -> None:
    names = set(features(tiny("whole"))._backbone.denoiser.state_dict())
    assert any(name.startswith("transformer_blocks.1.ff.") for name in names)
    assert not any(name.startswith(("transformer_blocks.2", "norm_out", "proj_out")) for name in names)


@pytest.mark.parametrize(
    "tap",
    [
        "context_embedder",
        "transformer_blocks.0.norm1_context",
        "transformer_blocks.0.ff_context.net.2",
        "transformer_blocks.1.attn.add_k_proj",
        "transformer_blocks.1.attn.norm_added_q",
        "transformer_blocks.1.attn.to_add_out",
        "transformer_blocks.2.norm1_context",
    ],
)
@pytest.mark.parametrize(("name", "side"), [("whole", 32), ("as_many", 68)])
def test_modules_of_the_text_are_no_taps(tap: str, name: str, side: int, tiny: Callable) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny(name)), taps=[tap], timesteps=[0], resolution=side)


def test_an_image_beyond_the_positions_is_refused(tiny: Callable) -> None:
    with pytest.raises(ConfigError, match="resolution 128") as caught:
        plan_for(str(tiny("whole")), taps=["*"], timesteps=[0], resolution=128)
    assert "allowed: at most 96" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel.* SD3Transformer2DModel"),
        ("transformer", {"in_channels": 16}, "16 latent channels.* 4"),
        ("text_encoder_2", {"projection_dim": 16}, "both CLIPs .* 24 .* 20"),
        ("text_encoder_2", {"hidden_size": 64}, "80 .* 48"),
        ("text_encoder_3", {"d_model": 32}, "T5 .* 32 .* 48"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Callable, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("whole"), tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0])
