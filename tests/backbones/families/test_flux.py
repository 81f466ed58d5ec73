import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import flux
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the moon", "twemoji emoji, blue circle", "dog"]
LENGTHS = {"dev": 512, "schnell": 256}
DOUBLE = {"transformer_blocks.0.attn": 0, "transformer_blocks.1": 1}  # tap -> which of its outputs is the image
IMAGE = ["x_embedder", "transformer_blocks.1.ff", "transformer_blocks.0.attn.to_k"]
JOINT = ["single_transformer_blocks.0.proj_mlp", "single_transformer_blocks.1.attn", "single_transformer_blocks.0.norm"]
SINGLE = {"single_transformer_blocks.0": 1, "single_transformer_blocks.1": 1}
TAPS = [*DOUBLE, *IMAGE, *JOINT, *SINGLE]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("flux")

    def make(name: str) -> Path:
        return root / name if (root / name).is_dir() else flux.tiny(root / name, guidance=name == "dev")

    return make


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["transformer_blocks.0"], "timesteps": [261], "device": "cpu", "resolution": 32, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@pytest.fixture
def reference(plain_hooks: Callable, noisy_latents: Callable) -> Callable[..., dict[str, Any]]:
    def run(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Any]:
        from diffusers import FluxPipeline

        pipeline = FluxPipeline.from_pretrained(folder)
        text, pooled, text_ids = pipeline.encode_prompt(CAPTIONS, max_sequence_length=LENGTHS[folder.name])
        x_t = noisy_latents(pipeline, images, KEYS, 261)
        side = x_t.shape[2]
        return plain_hooks(
            pipeline.transformer,
            taps,
            hidden_states=pipeline._pack_latents(x_t, 5, 4, side, side),
            timestep=torch.full((5,), 261.0) / 1000,
            guidance=torch.full((5,), 3.5) if folder.name == "dev" else None,
            pooled_projections=pooled.detach(),
            encoder_hidden_states=text.detach(),
            txt_ids=text_ids,
            img_ids=pipeline._prepare_latent_image_ids(5, side // 2, side // 2, "cpu", torch.float32),
        )

    return run


@pytest.mark.parametrize(("name", "side"), [("dev", 32), ("schnell", 64)])
def test_taps_equal_plain_hooks_on_the_untouched_model(
    name: str, side: int, tiny: Callable, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """At 64 px there are 256 image tokens, and schnell has as many of text: only the layout tells them apart."""
    images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear")
    loaded = features(tiny(name), taps=TAPS, condition="caption", pool="none", resolution=side)
    found = loaded(images, keys=KEYS, captions=CAPTIONS)
    outputs = reference(tiny(name), images, TAPS)
    if name == "schnell":
        text, image = outputs["single_transformer_blocks.1"]
        assert text.shape == image.shape
    expected = {tap: outputs[tap][place] for tap, place in {**DOUBLE, **SINGLE}.items()}
    expected.update({tap: outputs[tap] for tap in IMAGE})
    for tap in JOINT:
        joint = outputs[tap] if isinstance(outputs[tap], Tensor) else outputs[tap][0]
        expected[tap] = joint[:, LENGTHS[name] :]
    for tap, tokens in expected.items():
        torch.testing.assert_close(found[f"{tap}@t261:caption:none"], as_map(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", ["transformer_blocks.1", "single_transformer_blocks.0"])
def test_the_heads_of_a_normalised_query_stand_side_by_side(
    block: str, tiny: Callable, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    tap = f"{block}.attn.norm_q"
    found = features(tiny("schnell"), taps=[tap], condition="caption", pool="none")(
        images, keys=KEYS, captions=CAPTIONS
    )
    heads = reference(tiny("schnell"), images, [tap])[tap]  # batch, tokens, heads, width
    expected = as_map(torch.cat(heads.unbind(2), dim=-1)[:, -64:])
    torch.testing.assert_close(found[f"{tap}@t261:caption:none"], expected, atol=1e-5, rtol=0)


def test_latents_are_packed_as_the_pipeline_does() -> None:
    from diffusers import FluxPipeline

    x = torch.randn(2, 3, 4, 6)
    assert torch.equal(flux.pack(x), FluxPipeline._pack_latents(x, 2, 3, 4, 6))
    assert torch.equal(flux.pack(x.contiguous(memory_format=torch.channels_last)), flux.pack(x))


def test_the_conditioning_is_in_the_fingerprint(tiny: Callable) -> None:
    conditioning = [
        plan_for(str(tiny(name)), taps=["*"], timesteps=[0], resolution=32).fingerprint["conditioning"]
        for name in LENGTHS
    ]
    assert conditioning == [{"t5_tokens": 512, "guidance": 3.5}, {"t5_tokens": 256, "guidance": None}]


def test_its_own_resolution_is_that_of_the_pipeline(tiny: Callable) -> None:
    assert plan_for(str(tiny("dev")), taps=["transformer_blocks.0"], timesteps=[0]).resolution == 256


def test_texts_change_features_and_their_encoders_are_freed(tiny: Callable, images: Tensor) -> None:
    loaded = features(tiny("schnell"), condition="prompt", prompt="red cat", unconditional=True)
    prompt, empty = loaded(images, keys=KEYS).values()
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    assert float((prompt - empty).abs().max()) > 1e-3


def test_the_cut_model_lacks_the_later_blocks(tiny: Callable) -> None:
    double = set(features(tiny("dev"))._backbone.denoiser.state_dict())
    assert not any(name.startswith(("transformer_blocks.1", "single", "proj_out")) for name in double)
    single = set(features(tiny("dev"), taps=["single_transformer_blocks.0.proj_mlp"])._backbone.denoiser.state_dict())
    assert any(name.startswith("single_transformer_blocks.0.proj_mlp") for name in single)
    assert not any(
        name.startswith(("single_transformer_blocks.0.attn", "single_transformer_blocks.1")) for name in single
    )


@pytest.mark.parametrize(
    "tap",
    [
        "context_embedder",
        "transformer_blocks.0.norm1_context.norm",
        "transformer_blocks.0.ff_context",
        "transformer_blocks.1.attn.add_q_proj",
        "transformer_blocks.1.attn.norm_added_k",
        "transformer_blocks.1.attn.to_add_out",
    ],
)
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Callable) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny("schnell")), taps=[tap], timesteps=[0], resolution=64)


def test_a_resolution_that_cannot_be_packed_is_refused(tiny: Callable) -> None:
    with pytest.raises(ConfigError, match="resolution 34"):
        plan_for(str(tiny("dev")), taps=["*"], timesteps=[0], resolution=34)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel.* FluxTransformer2DModel"),
        ("transformer", {"in_channels": 64}, "16 latent channels.* 4"),
        ("transformer", {"in_channels": 6}, "takes 6 channels"),
        ("text_encoder", {"hidden_size": 32}, "CLIP .* 32 .* 16"),
        ("text_encoder_2", {"d_model": 48}, "T5 .* 48 .* 32"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Callable, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("dev"), tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0], resolution=32)
