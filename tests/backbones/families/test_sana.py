import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import sana
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch, WeightsMissing
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red CAT ", "", "a photo of the moon", "twemoji emoji, blue circle", "dog"]
TAPS = ["transformer_blocks.0.attn2", "transformer_blocks.1", "transformer_blocks.1.ff", "transformer_blocks.2.attn1"]
T = 261
KINDS: dict[str, dict[str, Any]] = {"1.0": {}, "1.5": {"qk_norm": "rms_norm_across_heads"}}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sana")
    for name, settings in KINDS.items():
        sana.tiny(root / name, **settings)
    return root


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["transformer_blocks.1"], "timesteps": [T], "device": "cpu", **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@torch.no_grad()
def reference(folder: Path, images: Tensor, taps: list[str], hooked: Any) -> dict[str, Tensor]:
    """Run diffusers' own parts with plain hooks: captions with the pipeline's instruction, the empty one without."""
    import diffusers

    pipeline = diffusers.SanaPipeline.from_pretrained(folder)
    instruction = sana._instruction().split("\n")
    encoded = [
        pipeline.encode_prompt(
            text, do_classifier_free_guidance=False, complex_human_instruction=instruction if text else None
        )
        for text in CAPTIONS
    ]
    clean = pipeline.vae.encode(images * 2 - 1).latent * pipeline.vae.config.scaling_factor
    noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
    found: dict[str, Tensor] = hooked(
        pipeline.transformer,
        taps,
        (1 - T / 1000) * clean + T / 1000 * noise,
        encoder_hidden_states=torch.cat([text for text, *_ in encoded]),
        encoder_attention_mask=torch.cat([mask for _, mask, *_ in encoded]),
        timestep=torch.full((5,), T) * pipeline.transformer.config.timestep_scale,
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", list(KINDS))
def test_taps_equal_plain_hooks_on_the_untouched_model(
    name: str, tiny: Path, images: Tensor, hooked: Any, as_map: Any
) -> None:
    found = features(tiny / name, taps=TAPS, condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    expected = reference(tiny / name, images, TAPS, hooked)
    for tap in TAPS:
        value = expected[tap] if expected[tap].ndim == 4 else as_map(expected[tap])
        torch.testing.assert_close(found[f"{tap}@t{T}:caption:none"], value, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_attention_to_the_text_equals_a_plain_computation(tiny: Path, images: Tensor, hooked: Any) -> None:
    path = "transformer_blocks.1.attn2"
    found = features(tiny / "1.0", taps=[f"{path}/logits"], condition="caption", pool="none")(
        images, keys=KEYS, captions=CAPTIONS
    )
    expected = reference(tiny / "1.0", images, [f"{path}.to_q", f"{path}.to_k"], hooked)
    q, k = (expected[f"{path}.{name}"].unflatten(-1, (2, 16)) for name in ("to_q", "to_k"))
    logits = torch.einsum("bihd,bjhd->bjih", q, k).mean(-1) / 4
    value = found[f"{path}/logits@t{T}:caption:none"]
    assert value.shape[1] == 300
    torch.testing.assert_close(value.flatten(2), logits, atol=1e-5, rtol=1e-5)


def test_normalised_queries_of_sana_1_5_have_no_readout_of_attention(tiny: Path) -> None:
    counts = [sum("/probs" in tap.path for tap in list_taps(str(tiny / name), inner=True)) for name in KINDS]
    assert counts == [3, 0]


def test_texts_change_features_and_their_case_does_not(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny / "1.0", condition="caption")
    first, second, other = (
        next(iter(loaded(images, keys=KEYS, captions=[text] * 5).values())) for text in ("red cat", " RED Cat", "moon")
    )
    assert torch.equal(first, second)
    assert float((first - other).abs().max()) > 1e-3


def test_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    conditioning = plan_for(str(tiny / "1.0"), taps=TAPS, timesteps=[0]).fingerprint["conditioning"]
    assert conditioning["text_tokens"] == 300 and conditioning["text"] == "lower case, stripped"
    assert sana._instruction() and conditioning["instruction"]


def test_the_cut_model_lacks_the_later_blocks_and_the_decoder(tiny: Path) -> None:
    parts = features(tiny / "1.0")._backbone.components()
    names = set(parts["denoiser"].state_dict())
    assert any(name.startswith("transformer_blocks.1.ff") for name in names)
    assert not any(name.startswith(("transformer_blocks.2", "proj_out")) for name in names)
    assert not any(name.startswith("decoder") for name in parts["vae"].state_dict())


@pytest.mark.parametrize("tap", ["transformer_blocks.0.attn2.to_k", "caption_projection", "caption_norm"])
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny / "1.5"), taps=[tap], timesteps=[0])


def test_a_resolution_without_whole_latents_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="resolution 33"):
        plan_for(str(tiny / "1.0"), taps=TAPS, timesteps=[0], resolution=33)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "DiTTransformer2DModel"}, "DiTTransformer2DModel.* SanaTransformer2DModel"),
        ("transformer", {"guidance_embeds": True}, "guidance"),
        ("text_encoder", {"hidden_size": 48}, "text encoder .* 48 .* 24"),
        ("vae", {"latent_channels": 16}, "4 latent channels.* 16"),
        ("vae", {"_class_name": "AutoencoderKL"}, "AutoencoderKL; .* AutoencoderDC"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny / "1.0", tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["transformer_blocks.0"], timesteps=[0])


def test_a_checkpoint_without_its_text_encoder_is_refused(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny / "1.0", tmp_path / "pipeline")
    shutil.rmtree(folder / "text_encoder")
    with pytest.raises(WeightsMissing, match=r"text_encoder/config\.json"):
        plan_for(str(folder), taps=["transformer_blocks.0"], timesteps=[0])
