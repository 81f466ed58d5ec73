import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import flux2
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch, WeightsMissing
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of [IMG] the moon", "twemoji emoji, blue circle", "dog"]
LENGTH = 512
DOUBLE = {"transformer_blocks.0.attn": 0, "transformer_blocks.1": 1}  # tap -> its output of the image
IMAGE = ["x_embedder", "transformer_blocks.1.ff", "transformer_blocks.0.attn.to_k"]
SINGLE = ["single_transformer_blocks.0", "single_transformer_blocks.1.attn", "single_transformer_blocks.1.norm"]
TAPS = [*DOUBLE, *IMAGE, *SINGLE]
NAMES = ["dev", "klein"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("flux2")

    def make(name: str) -> Path:
        return root / name if (root / name).is_dir() else flux2.tiny(root / name, klein=name == "klein")

    return make


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["transformer_blocks.0"], "timesteps": [261], "device": "cpu", "resolution": 32, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@pytest.fixture
def reference(plain_hooks: Callable) -> Callable[..., dict[str, Any]]:
    @torch.no_grad()
    def run(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Any]:
        from diffusers import DiffusionPipeline

        pipeline: Any = DiffusionPipeline.from_pretrained(folder)
        text, text_ids = pipeline.encode_prompt(CAPTIONS)
        clean = pipeline._encode_vae_image(images * 2 - 1, None)
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
        x_t = (1 - 0.261) * clean + 0.261 * noise
        return plain_hooks(
            pipeline.transformer,
            taps,
            hidden_states=pipeline._pack_latents(x_t),
            timestep=torch.full((5,), 261.0) / 1000,
            guidance=torch.full((5,), 4.0) if folder.name == "dev" else None,
            encoder_hidden_states=text,
            txt_ids=text_ids,
            img_ids=pipeline._prepare_latent_ids(x_t),
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_taps_equal_plain_hooks_on_the_untouched_model(
    name: str, tiny: Callable, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    loaded = features(tiny(name), taps=TAPS, condition="caption", pool="none")
    found = loaded(images, keys=KEYS, captions=CAPTIONS)
    outputs = reference(tiny(name), images, TAPS)
    expected = {tap: outputs[tap][place] for tap, place in DOUBLE.items()}
    expected.update({tap: outputs[tap] for tap in IMAGE})
    expected.update({tap: outputs[tap][:, LENGTH:] for tap in SINGLE})
    for tap, tokens in expected.items():
        torch.testing.assert_close(found[f"{tap}@t261:caption:none"], as_map(tokens), atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("block", ["transformer_blocks.0", "single_transformer_blocks.0"])
def test_the_text_stream_is_that_of_the_block(block: str, tiny: Callable, images: Tensor, reference: Callable) -> None:
    found = features(tiny("klein"), taps=[f"{block}/text"], condition="caption", pool="none")(
        images, keys=KEYS, captions=CAPTIONS
    )
    output = reference(tiny("klein"), images, [block])[block]
    text = output[0] if isinstance(output, tuple) else output[:, :LENGTH]
    torch.testing.assert_close(
        found[f"{block}/text@t261:caption:none"], text.transpose(1, 2)[..., None], atol=1e-5, rtol=0
    )


def test_shares_of_the_text_have_one_channel_per_token_of_it(tiny: Callable) -> None:
    found = [tap for tap in list_taps(str(tiny("dev")), resolution=32, inner=True) if tap.path.endswith("/probs")]
    assert len(found) == 5 and {tap.channels for tap in found} == {LENGTH}


@pytest.mark.slow
@pytest.mark.parametrize("block", ["transformer_blocks.1", "single_transformer_blocks.0"])
def test_the_heads_of_a_normalised_query_stand_side_by_side(
    block: str, tiny: Callable, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    tap = f"{block}.attn.norm_q"
    found = features(tiny("klein"), taps=[tap], condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    heads = reference(tiny("klein"), images, [tap])[tap]  # batch, tokens, heads, width
    expected = as_map(torch.cat(heads.unbind(2), dim=-1)[:, -64:])
    torch.testing.assert_close(found[f"{tap}@t261:caption:none"], expected, atol=1e-5, rtol=0)


def test_the_conditioning_is_in_the_fingerprint(tiny: Callable) -> None:
    conditioning = [
        plan_for(str(tiny(name)), taps=["*"], timesteps=[0], resolution=32).fingerprint["conditioning"]
        for name in NAMES
    ]
    assert conditioning == [
        {"text_tokens": 512, "text_layers": [10, 20, 30], "guidance": 4.0},
        {"text_tokens": 512, "text_layers": [9, 18, 27], "guidance": None},
    ]


def test_another_chat_template_is_another_tokenizer(tiny: Callable, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("klein"), tmp_path / "pipeline")
    before = plan_for(str(folder), taps=["*"], timesteps=[0], resolution=32).fingerprint
    path = folder / "tokenizer" / "chat_template.jinja"
    path.write_text(path.read_text() + "!")
    after = plan_for(str(folder), taps=["*"], timesteps=[0], resolution=32).fingerprint
    assert before != after


def test_its_own_resolution_is_that_of_the_pipeline(tiny: Callable) -> None:
    assert plan_for(str(tiny("dev")), taps=["transformer_blocks.0"], timesteps=[0]).resolution == 256


def test_texts_change_features_and_their_encoder_is_freed(tiny: Callable, images: Tensor) -> None:
    loaded = features(tiny("dev"), condition="prompt", prompt="red cat", unconditional=True)
    assert "text_encoder" in loaded._backbone.components()
    prompt, empty = loaded(images, keys=KEYS).values()
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    assert float((prompt - empty).abs().max()) > 1e-3


def test_the_cut_model_lacks_the_later_blocks(tiny: Callable) -> None:
    double = set(features(tiny("dev"))._backbone.denoiser.state_dict())
    assert not any(name.startswith(("transformer_blocks.1", "single_tr", "proj_out")) for name in double)
    single = set(features(tiny("dev"), taps=["single_transformer_blocks.0"])._backbone.denoiser.state_dict())
    assert any(name.startswith("single_transformer_blocks.0.attn") for name in single)
    assert not any(name.startswith("single_transformer_blocks.1") for name in single)


@pytest.mark.parametrize(
    "tap",
    [
        "context_embedder",
        "transformer_blocks.0.norm1_context",
        "transformer_blocks.0.ff_context.linear_in",
        "transformer_blocks.1.attn.add_q_proj",
        "transformer_blocks.1.attn.norm_added_k",
        "transformer_blocks.1.attn.to_add_out",
    ],
)
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Callable) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny("dev")), taps=[tap], timesteps=[0], resolution=32)


def test_a_resolution_that_is_no_whole_number_of_tokens_is_refused(tiny: Callable) -> None:
    with pytest.raises(ConfigError, match="resolution 34"):
        plan_for(str(tiny("dev")), taps=["*"], timesteps=[0], resolution=34)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "FluxTransformer2DModel"}, "FluxTransformer2DModel.* Flux2Transformer2DModel"),
        ("transformer", {"in_channels": 64}, "64 latent channels.* 16"),
        ("vae", {"_class_name": "AutoencoderKL"}, "AutoencoderKL; .* AutoencoderKLFlux2"),
        ("vae", {"patch_size": [1, 1]}, r"patch_size .*\[1, 1\]"),
        ("text_encoder", {"hidden_size": 32}, "3 layers .* 96 .* 48"),
        ("text_encoder", {"model_type": "gemma2"}, "gemma2.*(?s:.*)qwen3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Callable, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny("klein"), tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0], resolution=32)


def test_a_text_encoder_with_too_few_layers_is_refused(tiny: Callable, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("klein"), tmp_path / "pipeline")
    path = folder / "text_encoder" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 20}))
    with pytest.raises(WeightsMismatch, match="20 layers; .* after 27"):
        features(folder)


def test_a_tokenizer_without_a_chat_template_is_refused(tiny: Callable, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("klein"), tmp_path / "pipeline")
    (folder / "tokenizer" / "chat_template.jinja").unlink()
    with pytest.raises(WeightsMissing, match="no chat template"):
        features(folder)
