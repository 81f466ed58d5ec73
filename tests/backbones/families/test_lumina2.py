import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import lumina2
from diffprobe.backbones.locate import locate
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from diffprobe.scoring.denoising_error import DenoisingError
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "a red cat", "a photo of the moon", "twemoji emoji, blue circle", "dog"]
APART = ["x_embedder", "noise_refiner.0", "noise_refiner.0.attn.to_k"]
JOINT = ["layers.0.attn", "layers.1", "layers.1.feed_forward", "layers.2.norm1"]
T, LENGTH, N_IMAGE = 261, 256, 16


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lumina2.tiny(tmp_path_factory.mktemp("lumina2") / "tiny")


@pytest.fixture
def large(images: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(images, size=(64, 64), mode="bilinear")


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["layers.1"], "timesteps": [T], "device": "cpu", "resolution": 64, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@pytest.fixture
def reference(plain_hooks: Callable, noisy_latents: Callable) -> Callable[..., dict[str, Any]]:
    """Call the pipeline for what it gives its transformer; run that with the latents of images, and plain hooks."""

    def run(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Any]:
        import diffusers

        pipeline = diffusers.Lumina2Pipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        given: dict[str, Any] = {}

        def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given.update(kwargs)

        handle = pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
        size = {"height": images.shape[2], "width": images.shape[3]}
        pipeline(CAPTIONS, **size, guidance_scale=1.0, num_inference_steps=1, output_type="latent")
        handle.remove()
        given["hidden_states"] = noisy_latents(pipeline, images, KEYS, T)
        given["timestep"] = torch.full((5,), 1 - T / 1000)
        found: dict[str, Any] = plain_hooks(pipeline.transformer, taps, **given)
        return {**found, "lengths": given["encoder_attention_mask"].sum(1).tolist()}

    return run


def after_text(tokens: Tensor, lengths: list[int]) -> Tensor:
    return torch.stack([row[n : n + N_IMAGE] for row, n in zip(tokens, lengths, strict=True)])


def test_taps_equal_plain_hooks_on_the_untouched_model(
    tiny: Path, large: Tensor, reference: Callable, as_map: Callable
) -> None:
    """Texts have different lengths, so the image begins at another token in each row."""
    taps = [*APART, *JOINT]
    found = features(tiny, taps=taps, condition="caption", pool="none")(large, keys=KEYS, captions=CAPTIONS)
    expected = reference(tiny, large, taps)
    assert len(set(expected["lengths"])) > 2
    for tap in taps:
        tokens = expected[tap][0] if isinstance(expected[tap], tuple) else expected[tap]
        tokens = after_text(tokens, expected["lengths"]) if tap in JOINT else tokens
        torch.testing.assert_close(found[f"{tap}@t{T}:caption:none"], as_map(tokens), atol=1e-5, rtol=0)


def test_the_text_of_a_row_is_filled_with_zeros(tiny: Path, large: Tensor, reference: Callable) -> None:
    found = features(tiny, taps=["layers.1/text"], condition="caption", pool="none")(
        large, keys=KEYS, captions=CAPTIONS
    )[f"layers.1/text@t{T}:caption:none"]
    expected = reference(tiny, large, ["layers.1"])
    assert found.shape == (5, 32, LENGTH, 1)
    for row, tokens, n in zip(found, expected["layers.1"], expected["lengths"], strict=True):
        torch.testing.assert_close(row[:, :n, 0].T, tokens[:n], atol=1e-5, rtol=0)
        assert not row[:, n:].any()


@pytest.mark.parametrize("readout", ["probs", "logits"])
def test_attention_to_the_text_equals_a_plain_computation(
    readout: str, tiny: Path, large: Tensor, reference: Callable
) -> None:
    path = "layers.1.attn"
    found = features(tiny, taps=[f"{path}/{readout}"], condition="caption", pool="none")(
        large, keys=KEYS, captions=CAPTIONS
    )[f"{path}/{readout}@t{T}:caption:none"]
    assert found.shape == (5, LENGTH, 4, 4)
    seen = reference(tiny, large, [f"{path}.norm_q", f"{path}.norm_k", "rope_embedder"])
    turn = seen["rope_embedder"][3]
    for i, n in enumerate(seen["lengths"]):
        q, k = (seen[f"{path}.norm_{name}"][i, : n + N_IMAGE] for name in "qk")
        q, k = (torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) for x in (q, k.expand(-1, 2, -1)))
        q, k = (torch.view_as_real(x * turn[i, : n + N_IMAGE, None]).flatten(-2) for x in (q, k))
        logits = torch.einsum("ihd,jhd->hij", q[n:], k) / 4
        maps = (logits.exp() / logits.exp().sum(-1, keepdim=True) if readout == "probs" else logits).mean(0)
        own = found[i].flatten(1)
        torch.testing.assert_close(own[:n], maps[:, :n].T.float(), atol=1e-5, rtol=1e-5)
        assert not own[n:].any()


def test_parts_of_an_attention_are_those_of_the_image_behind_each_text(
    tiny: Path, large: Tensor, reference: Callable, as_map: Callable
) -> None:
    """Values are projections alone, and the image's places begin at another token in each row."""
    path = "layers.1.attn"
    found = features(tiny, taps=[f"{path}/v", f"{path}/heads"], condition="caption", pool="none")(
        large, keys=KEYS, captions=CAPTIONS
    )
    expected = reference(tiny, large, [f"{path}.to_v", f"{path}.to_out.0", path])
    values = after_text(expected[f"{path}.to_v"], expected["lengths"])
    grouped = found[f"{path}/v@t{T}:caption:none"]
    torch.testing.assert_close(grouped[:, :16], as_map(values)[:, :16], atol=1e-5, rtol=0)
    projection = DiffusionFeatures.from_pretrained(
        str(tiny), taps=[path], timesteps=[T], device="cpu", resolution=64, condition="caption", pool="none"
    )(large, keys=KEYS, captions=CAPTIONS)[f"{path}@t{T}:caption:none"]
    import diffusers

    weight = diffusers.Lumina2Pipeline.from_pretrained(tiny).transformer.layers[1].attn.to_out[0].weight
    heads = torch.einsum("oc,bchw->bohw", weight, found[f"{path}/heads@t{T}:caption:none"])
    torch.testing.assert_close(heads, projection, atol=1e-5, rtol=0)


def test_the_empty_text_is_that_of_the_unconditional_pass(tiny: Path) -> None:
    import diffusers

    model = DenoisingError.from_pretrained(str(tiny), device="cpu", resolution=64)
    with torch.no_grad():
        found = model.encode_conditions(["red cat", ""])
        pipeline = diffusers.Lumina2Pipeline.from_pretrained(tiny)
        text, mask, negative, negative_mask = pipeline.encode_prompt(["red cat"])
    expected = {
        "encoder_hidden_states": torch.cat([text, negative]),
        "encoder_attention_mask": torch.cat([mask, negative_mask]),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=0)
    assert pipeline.system_prompt + " <Prompt Start> " == lumina2._INSTRUCTION


def test_texts_change_features_and_other_rows_do_not(tiny: Path, large: Tensor) -> None:
    loaded = features(tiny, condition="caption")
    (mixed,) = loaded(large, keys=KEYS, captions=["", *CAPTIONS[1:]]).values()
    (alone,) = loaded(large[:1], keys=KEYS[:1], captions=[""]).values()
    (other,) = loaded(large[:1], keys=KEYS[:1], captions=["moon"]).values()
    torch.testing.assert_close(mixed[:1], alone, atol=1e-5, rtol=0)
    assert float((alone - other).abs().max()) > 1e-3


def test_the_cut_model_lacks_the_later_blocks(tiny: Path) -> None:
    names = set(features(tiny)._backbone.denoiser.state_dict())
    assert any(name.startswith("context_refiner.0") for name in names)
    assert not any(name.startswith(("layers.2", "norm_out")) for name in names)


@pytest.mark.parametrize("tap", ["context_refiner.0", "context_refiner.0.attn.norm_q", "time_caption_embed"])
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny), taps=[tap], timesteps=[0])


def test_attention_of_the_image_to_itself_has_no_readout(tiny: Path) -> None:
    found = [tap.path for tap in list_taps(str(tiny), inner=True) if tap.path.endswith("/probs")]
    assert found == [f"layers.{i}.attn/probs" for i in range(3)]


def test_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    conditioning = plan_for(str(tiny), taps=["*"], timesteps=[0]).fingerprint["conditioning"]
    assert conditioning["text_tokens"] == LENGTH and conditioning["instruction"]


def test_a_resolution_beyond_the_positions_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="resolution 1040") as caught:
        plan_for(str(tiny), taps=["*"], timesteps=[0], resolution=1040)
    assert "allowed: at most 1024" in str(caught.value)


def test_the_older_name_of_the_pipeline_is_read(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "_class_name": "Lumina2Text2ImgPipeline"}))
    assert lumina2.matches(locate(str(folder)).index)
    assert plan_for(str(folder), taps=["layers.0"], timesteps=[0]).spec.family == "lumina2"


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel.* Lumina2Transformer2DModel"),
        ("transformer", {"axes_lens": [256, 64, 64]}, "256 tokens of text"),
        ("transformer", {"in_channels": 16}, "16 latent channels.* 4"),
        ("text_encoder", {"hidden_size": 48}, "text encoder .* 48 .* 24"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0])
