import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import qwen_image
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the {moon}", "twemoji emoji, blue circle", "dog"]
LENGTH = 512
IMAGE = ["img_in", "transformer_blocks.1.img_mlp", "transformer_blocks.0.attn.to_k", "transformer_blocks.2.img_norm1"]
PAIRS = {"transformer_blocks.0.attn": 0, "transformer_blocks.1": 1, "transformer_blocks.2": 1}
TAPS = [*PAIRS, *IMAGE]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return qwen_image.tiny(tmp_path_factory.mktemp("qwen_image") / "tiny")


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["transformer_blocks.0"], "timesteps": [261], "device": "cpu", "resolution": 32, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@pytest.fixture
def reference(plain_hooks: Callable) -> Callable[..., dict[str, Any]]:
    @torch.no_grad()
    def run(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Any]:
        from diffusers import QwenImagePipeline

        pipeline = QwenImagePipeline.from_pretrained(folder)
        text, mask = pipeline.encode_prompt(CAPTIONS)
        mean, std = (
            torch.tensor(pipeline.vae.config[name]).reshape(1, -1, 1, 1) for name in ("latents_mean", "latents_std")
        )
        clean = (pipeline.vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()[:, :, 0] - mean) / std
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
        x_t = (1 - 0.261) * clean + 0.261 * noise
        side = x_t.shape[2]
        found = plain_hooks(
            pipeline.transformer,
            taps,
            hidden_states=pipeline._pack_latents(x_t, 5, 4, side, side),
            timestep=torch.full((5,), 261.0) / 1000,
            encoder_hidden_states=text,
            encoder_hidden_states_mask=mask,
            img_shapes=[[(1, side // 2, side // 2)]] * 5,
        )
        return {**found, "lengths": mask.sum(1)}

    return run


def test_taps_equal_plain_hooks_on_the_untouched_model(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """The pipeline pads texts to the longest one: the image does not depend on the padding."""
    found = features(tiny, taps=TAPS, condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    outputs = reference(tiny, images, TAPS)
    expected = {tap: outputs[tap][place] for tap, place in PAIRS.items()}
    expected.update({tap: outputs[tap] for tap in IMAGE})
    assert len(set(outputs["lengths"].tolist())) > 1
    for tap, tokens in expected.items():
        torch.testing.assert_close(found[f"{tap}@t261:caption:none"], as_map(tokens), atol=1e-5, rtol=0)


def test_the_text_stream_is_that_of_the_block(tiny: Path, images: Tensor, reference: Callable) -> None:
    block = "transformer_blocks.1"
    found = features(tiny, taps=[f"{block}/text"], condition="caption", pool="none")(
        images, keys=KEYS, captions=CAPTIONS
    )[f"{block}/text@t261:caption:none"]
    outputs = reference(tiny, images, [block])
    assert found.shape[2] == LENGTH
    for ours, theirs, n in zip(found, outputs[block][0], outputs["lengths"], strict=True):
        torch.testing.assert_close(ours[:, :n, 0], theirs[:n].T, atol=1e-5, rtol=0)


def test_padding_has_no_share_of_the_attention(tiny: Path, images: Tensor, reference: Callable) -> None:
    tap = "transformer_blocks.0.attn/probs"
    assert {info.channels for info in list_taps(str(tiny), resolution=32, inner=True) if info.path == tap} == {LENGTH}
    found = features(tiny, taps=[tap], condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    lengths = reference(tiny, images, ["img_in"])["lengths"]
    for probs, n in zip(found[f"{tap}@t261:caption:none"], lengths, strict=True):
        assert bool((probs[:n] > 0).all()) and not probs[n:].any()


def test_the_heads_of_a_normalised_query_stand_side_by_side(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    tap = "transformer_blocks.1.attn.norm_q"
    found = features(tiny, taps=[tap], condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    heads = reference(tiny, images, [tap])[tap]  # batch, tokens, heads, width
    expected = as_map(torch.cat(heads.unbind(2), dim=-1))
    torch.testing.assert_close(found[f"{tap}@t261:caption:none"], expected, atol=1e-5, rtol=0)


def test_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    found = plan_for(str(tiny), taps=["*"], timesteps=[0], resolution=32).fingerprint["conditioning"]
    assert found["text_tokens"] == LENGTH and len(found["template"]) > 8


def test_its_own_resolution_is_that_of_the_pipeline(tiny: Path) -> None:
    assert plan_for(str(tiny), taps=["transformer_blocks.0"], timesteps=[0]).resolution == 256


def test_texts_change_features_and_their_encoder_is_freed(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny, condition="prompt", prompt="red cat", unconditional=True)
    assert "text_encoder" in loaded._backbone.components()
    assert not any("visual" in name for name in loaded._backbone.components()["text_encoder"].state_dict())
    prompt, empty = loaded(images, keys=KEYS).values()
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    assert float((prompt - empty).abs().max()) > 1e-4


def test_the_cut_model_lacks_the_later_blocks(tiny: Path) -> None:
    names = set(features(tiny)._backbone.denoiser.state_dict())
    assert any(name.startswith("transformer_blocks.0") for name in names)
    assert not any(name.startswith(("transformer_blocks.1", "proj_out")) for name in names)


@pytest.mark.parametrize(
    "tap",
    [
        "txt_norm",
        "txt_in",
        "transformer_blocks.0.txt_norm1",
        "transformer_blocks.0.txt_mlp.net.0",
        "transformer_blocks.1.attn.add_q_proj",
        "transformer_blocks.1.attn.norm_added_k",
        "transformer_blocks.1.attn.to_add_out",
    ],
)
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny), taps=[tap], timesteps=[0], resolution=32)


def test_a_resolution_that_cannot_be_packed_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="resolution 34"):
        plan_for(str(tiny), taps=["*"], timesteps=[0], resolution=34)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "FluxTrans.* QwenImageTransformer2DModel"),
        ("transformer", {"in_channels": 64}, "16 latent channels.* 4"),
        ("transformer", {"patch_size": 4}, "patch_size 4"),
        ("transformer", {"zero_cond_t": True}, "zero_cond_t"),
        ("transformer", {"joint_attention_dim": 48}, "32 .* 48"),
        ("vae", {"_class_name": "AutoencoderKL"}, "AutoencoderKL; .* AutoencoderKLQwenImage"),
        ("vae", {"latents_std": [1.0]}, "4 numbers"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0], resolution=32)
