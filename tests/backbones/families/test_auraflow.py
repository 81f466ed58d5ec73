import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import auraflow
from diffprobe.backbones.taps import list_taps
from diffprobe.backbones.text_encoders import t5_tokenizer
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the moon", "twemoji emoji, blue circle", "dog"]
REGISTERS, LENGTH = 8, 256
DOUBLE = {"joint_transformer_blocks.0.attn": 0, "joint_transformer_blocks.1": 1}  # tap -> its output of the image
IMAGE = ["pos_embed", "joint_transformer_blocks.1.ff", "joint_transformer_blocks.0.attn.to_k"]
SINGLE = ["single_transformer_blocks.0", "single_transformer_blocks.1.attn", "single_transformer_blocks.1.ff"]
TAPS = [*DOUBLE, *IMAGE, *SINGLE]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return auraflow.tiny(tmp_path_factory.mktemp("auraflow") / "tiny")


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["joint_transformer_blocks.0"], "timesteps": [261], "device": "cpu", "resolution": 32, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@pytest.fixture
def reference(plain_hooks: Callable, noisy_latents: Callable) -> Callable[..., dict[str, Any]]:
    def run(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Any]:
        from diffusers import AuraFlowPipeline

        pipeline = AuraFlowPipeline.from_pretrained(folder)
        text = pipeline.encode_prompt(CAPTIONS, do_classifier_free_guidance=False)[0]
        return plain_hooks(
            pipeline.transformer,
            taps,
            hidden_states=noisy_latents(pipeline, images, KEYS, 261),
            encoder_hidden_states=text.detach(),
            timestep=torch.full((5,), 0.261),
        )

    return run


@pytest.mark.parametrize("side", [32, 64])
def test_taps_equal_plain_hooks_on_the_untouched_model(
    side: int, tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """At 64 px there are 256 image tokens, and as many of text: only the layout tells them apart."""
    images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear")
    loaded = features(tiny, taps=TAPS, condition="caption", pool="none", resolution=side)
    found = loaded(images, keys=KEYS, captions=CAPTIONS)
    outputs = reference(tiny, images, TAPS)
    expected = {tap: outputs[tap][place] for tap, place in DOUBLE.items()}
    expected.update({tap: outputs[tap] for tap in IMAGE})
    expected.update({tap: outputs[tap][:, REGISTERS + LENGTH :] for tap in SINGLE})
    for tap, tokens in expected.items():
        torch.testing.assert_close(found[f"{tap}@t261:caption:none"], as_map(tokens), atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", ["joint_transformer_blocks.0", "single_transformer_blocks.1"])
def test_the_text_stream_has_no_registers(block: str, tiny: Path, images: Tensor, reference: Callable) -> None:
    found = features(tiny, taps=[f"{block}/text"], condition="caption", pool="none")(
        images, keys=KEYS, captions=CAPTIONS
    )
    output = reference(tiny, images, [block])[block]
    text = (output[0] if isinstance(output, tuple) else output)[:, REGISTERS : REGISTERS + LENGTH]
    assert len(text[0]) == LENGTH
    torch.testing.assert_close(
        found[f"{block}/text@t261:caption:none"], text.transpose(1, 2)[..., None], atol=1e-5, rtol=0
    )


def test_shares_of_the_text_have_one_channel_per_token_of_it(tiny: Path) -> None:
    found = [tap for tap in list_taps(str(tiny), resolution=32, inner=True) if tap.path.endswith("/probs")]
    assert len(found) == 5 and {tap.channels for tap in found} == {LENGTH}


@pytest.mark.parametrize("block", ["joint_transformer_blocks.1", "single_transformer_blocks.0"])
def test_the_heads_of_a_normalised_query_stand_side_by_side(
    block: str, tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    tap = f"{block}.attn.norm_q"
    found = features(tiny, taps=[tap], condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    heads = reference(tiny, images, [tap])[tap]  # batch, tokens, heads, width
    expected = as_map(torch.cat(heads.unbind(2), dim=-1)[:, -64:])
    torch.testing.assert_close(found[f"{tap}@t261:caption:none"], expected, atol=1e-5, rtol=0)


def test_texts_change_features_and_their_encoder_is_freed(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny, condition="prompt", prompt="red cat", unconditional=True)
    assert "text_encoder" in loaded._backbone.components()
    prompt, empty = loaded(images, keys=KEYS).values()
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    assert float((prompt - empty).abs().max()) > 1e-3


def test_the_cut_model_lacks_the_later_blocks(tiny: Path) -> None:
    names = set(features(tiny)._backbone.denoiser.state_dict())
    assert "register_tokens" in names
    assert not any(name.startswith(("joint_transformer_blocks.1", "single", "proj_out")) for name in names)


@pytest.mark.parametrize(
    "tap",
    [
        "context_embedder",
        "joint_transformer_blocks.0.norm1_context",
        "joint_transformer_blocks.0.ff_context.linear_1",
        "joint_transformer_blocks.1.attn.add_q_proj",
        "joint_transformer_blocks.1.attn.norm_added_k",
        "joint_transformer_blocks.1.attn.to_add_out",
    ],
)
@pytest.mark.parametrize("side", [32, 64])
def test_modules_of_the_text_are_no_taps(tap: str, side: int, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny), taps=[tap], timesteps=[0], resolution=side)


def test_its_own_resolution_is_the_most_it_has_positions_for(tiny: Path) -> None:
    assert plan_for(str(tiny), taps=["joint_transformer_blocks.0"], timesteps=[0]).resolution == 96
    with pytest.raises(ConfigError, match="resolution 128") as caught:
        plan_for(str(tiny), taps=["*"], timesteps=[0], resolution=128)
    assert "allowed: at most 96" in str(caught.value)


def test_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    plan = plan_for(str(tiny), taps=["*"], timesteps=[0], resolution=32)
    assert plan.fingerprint["conditioning"] == {"t5_tokens": LENGTH, "padding": "zeros"}


@pytest.mark.parametrize(
    ("stated", "expected"),
    [("LlamaTokenizerFast", "LlamaTokenizerFast"), ("LlamaTokenizer", "LlamaTokenizerFast"), ("T5Tokenizer", None)],
)
def test_the_tokenizer_is_of_the_class_that_the_pipeline_names(stated: str, expected: str | None) -> None:
    index = {"tokenizer": ["transformers", stated]}
    assert t5_tokenizer(index, "tokenizer") == (expected or "T5TokenizerFast")


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel.* AuraFlowTransformer2DModel"),
        ("transformer", {"in_channels": 16}, "16 latent channels.* 4"),
        ("text_encoder", {"d_model": 48}, "T5 .* 48 .* 32"),
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
