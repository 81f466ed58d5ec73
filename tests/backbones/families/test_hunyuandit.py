import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.check import check_backbone
from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import hunyuandit
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the moon", "twemoji emoji, blue circle", "dog"]
TAPS = ["pos_embed", "blocks.0.attn2", "blocks.1", "blocks.2.ff", "blocks.3.skip_linear", "blocks.3.attn1", "blocks.3"]
T = 261
KINDS = {"1.1": True, "1.2": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hunyuandit")
    for name, sized in KINDS.items():
        hunyuandit.tiny(root / name, sized=sized)
    return root


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["blocks.1"], "timesteps": [T], "device": "cpu", "resolution": 64, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


@pytest.fixture
def reference(plain_hooks: Callable, noisy_latents: Callable) -> Callable[..., dict[str, Any]]:
    """Call the pipeline for what it gives its transformer; run that with the latents of images, and plain hooks."""

    def run(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Any]:
        import diffusers

        pipeline = diffusers.HunyuanDiTPipeline.from_pretrained(folder, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        given: dict[str, Any] = {}

        def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given.update(kwargs)

        handle = pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
        pipeline(
            CAPTIONS, height=images.shape[2], width=images.shape[3], guidance_scale=1.0, num_inference_steps=1,
            output_type="latent", use_resolution_binning=False,
        )  # fmt: skip
        handle.remove()
        latents = noisy_latents(pipeline, images, KEYS, T)
        found = plain_hooks(pipeline.transformer, taps, latents, torch.full((5,), float(T)), **given)
        return {**found, "positions": given["image_rotary_emb"]}

    return run


@pytest.fixture
def large(images: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(images, size=(64, 64), mode="bilinear")


@pytest.mark.parametrize("name", list(KINDS))
def test_taps_equal_plain_hooks_on_the_untouched_model(
    name: str, tiny: Path, large: Tensor, reference: Callable, as_map: Callable
) -> None:
    found = features(tiny / name, taps=TAPS, condition="caption", pool="none")(large, keys=KEYS, captions=CAPTIONS)
    expected = reference(tiny / name, large, TAPS)
    for tap in TAPS:
        torch.testing.assert_close(found[f"{tap}@t{T}:caption:none"], as_map(expected[tap]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("readout", ["probs", "logits"])
def test_attention_to_the_text_equals_a_plain_computation(
    readout: str, tiny: Path, large: Tensor, reference: Callable
) -> None:
    """Queries are normalised and turned, keys normalised alone; padding is a learned token, and attended to."""
    path = "blocks.1.attn2"
    found = features(tiny / "1.1", taps=[f"{path}/{readout}"], condition="caption", pool="none")(
        large, keys=KEYS, captions=CAPTIONS
    )[f"{path}/{readout}@t{T}:caption:none"]
    seen = reference(tiny / "1.1", large, [f"{path}.norm_q", f"{path}.norm_k"])
    q, k = (seen[f"{path}.norm_{name}"] for name in "qk")
    cos, sin = seen["positions"]
    turned = torch.stack([-q[..., 1::2], q[..., 0::2]], dim=-1).flatten(-2)
    logits = torch.einsum("bhid,bhjd->bhij", q * cos + turned * sin, k) / 4
    maps = (logits.exp() / logits.exp().sum(-1, keepdim=True) if readout == "probs" else logits).mean(1)
    assert found.shape == (5, 333, 4, 4)
    torch.testing.assert_close(found.flatten(2), maps.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_every_block_attends_to_the_text(tiny: Path) -> None:
    found = [tap.path for tap in list_taps(str(tiny / "1.1"), inner=True) if tap.path.endswith("/probs")]
    assert found == [f"blocks.{i}.attn2/probs" for i in range(4)]


def test_texts_change_features_and_their_encoders_are_freed(tiny: Path, large: Tensor) -> None:
    loaded = features(tiny / "1.1", condition="prompt", prompt="red cat", unconditional=True)
    assert {"text_encoder", "text_encoder_2"} < set(loaded._backbone.components())
    prompt, empty = loaded(large, keys=KEYS).values()
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    assert float((prompt - empty).abs().max()) > 1e-3


def test_the_cut_model_lacks_the_later_blocks_and_keeps_the_pooler(tiny: Path) -> None:
    names = set(features(tiny / "1.1")._backbone.denoiser.state_dict())
    assert "time_extra_emb.pooler.c_proj.weight" in names and "text_embedding_padding" in names
    assert not any(name.startswith(("blocks.2", "blocks.3", "proj_out")) for name in names)


@pytest.mark.parametrize("tap", ["blocks.0.attn2.to_k", "blocks.0.attn2.norm_k", "text_embedder"])
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny / "1.1"), taps=[tap], timesteps=[0])


def test_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    found = {
        name: plan_for(str(tiny / name), taps=["*"], timesteps=[0], resolution=32).fingerprint["conditioning"]
        for name in KINDS
    }
    assert found["1.2"] == {"bert_tokens": 77, "t5_tokens": 256}
    sizes = {"original_size": [1024, 1024], "target_size": [32, 32], "crop": [0, 0], "style": 0}
    assert found["1.1"] == {**found["1.2"], **sizes}


def test_a_resolution_without_whole_tokens_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="multiples of 16"):
        plan_for(str(tiny / "1.1"), taps=["*"], timesteps=[0], resolution=72)


def test_a_check_reads_every_part(tiny: Path) -> None:
    report = check_backbone(str(tiny / "1.1"))
    assert report.faults == []
    sizes = {part.name: part.n_parameters for part in report.parts if part.n_parameters}
    assert set(sizes) == {"transformer", "vae", "text_encoder", "text_encoder_2"}


def test_a_vocabulary_of_lines_is_enough(tiny: Path, tmp_path: Path, large: Tensor) -> None:
    """Checkpoints before transformers 5 have a vocab.txt."""
    from transformers import BertTokenizer

    folder = shutil.copytree(tiny / "1.1", tmp_path / "pipeline")
    words = BertTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)) + "\n")
    settings: dict[str, Any] = {"condition": "prompt", "prompt": "a red cat, zebra"}
    (old,), (new,) = (features(x, **settings)(large, keys=KEYS).values() for x in (folder, tiny / "1.1"))
    assert torch.equal(old, new)
    plans = [plan_for(str(x), taps=["*"], timesteps=[0]).fingerprint for x in (folder, tiny / "1.1")]
    assert plans[0] != plans[1]


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel.* HunyuanDiT2DModel"),
        ("transformer", {"learn_sigma": False}, "variance"),
        ("transformer", {"text_len": 64}, "64 and 256 tokens"),
        ("transformer", {"in_channels": 16}, "16 latent channels.* 4"),
        ("text_encoder", {"hidden_size": 48}, "BERT .* 48 .* 24"),
        ("text_encoder_2", {"d_model": 48}, "T5 .* 48 .* 32"),
        ("vae", {"block_out_channels": [16, 32]}, "reduces a side by 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny / "1.1", tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0])
