import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import z_image
from diffprobe.backbones.taps import list_taps
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from diffprobe.scoring.denoising_error import DenoisingError
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the moon of the sun of the tree of the star", "dog", "twemoji emoji"]
APART = ["noise_refiner.0", "noise_refiner.0.attention.to_k", "noise_refiner.0.attention/heads"]
JOINT = ["layers.0.attention", "layers.1", "layers.1.feed_forward", "layers.2.attention_norm1"]
T, LENGTH, SIDE = 261, 512, 40
N_IMAGE, START = 100, 128
"""Image tokens at 40 px, and the same with their filling."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return z_image.tiny(tmp_path_factory.mktemp("z_image") / "tiny")


@pytest.fixture
def images(images: Tensor) -> Tensor:
    return torch.nn.functional.interpolate(images, size=(SIDE, SIDE), mode="bilinear")


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": ["layers.1"], "timesteps": [T], "device": "cpu", "resolution": SIDE, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


def read(folder: Path, images: Tensor, taps: list[str]) -> dict[str, Tensor]:
    """Read taps for captions, by the tap alone."""
    found = features(folder, taps=taps, condition="caption", pool="none")(images, keys=KEYS, captions=CAPTIONS)
    return {cell.partition("@")[0]: value for cell, value in found.items()}


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Any:
    import diffusers

    return diffusers.ZImagePipeline.from_pretrained(tiny)


@pytest.fixture
def reference(pipeline: Any, plain_hooks: Callable, noisy_latents: Callable) -> Callable[..., dict[str, Any]]:
    """Run the pipeline's transformer on the latents of images and its own texts, with plain hooks."""

    @torch.no_grad()
    def run(images: Tensor, taps: list[str]) -> dict[str, Any]:
        texts, _ = pipeline.encode_prompt(list(CAPTIONS), do_classifier_free_guidance=False)
        x_t = noisy_latents(pipeline, images, KEYS, T)
        times = torch.full((5,), (1000 - T) / 1000)
        found: dict[str, Any] = plain_hooks(pipeline.transformer, taps, list(x_t[:, :, None]), times, texts)
        return {**found, "lengths": [-(-len(text) // 32) * 32 for text in texts]}

    return run


def test_taps_equal_plain_hooks_on_the_untouched_model(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """Texts and the image are filled up to a multiple of 32 tokens; texts differ in length."""
    found, plain = read(tiny, images, [*APART[:2], *JOINT]), reference(images, [*APART[:2], *JOINT])
    assert len(set(plain["lengths"])) > 1
    for tap in (*APART[:2], *JOINT):
        assert plain[tap].shape[1] == (START if tap in APART else START + max(plain["lengths"]))
        torch.testing.assert_close(found[tap], as_map(plain[tap][:, :N_IMAGE]), atol=1e-5, rtol=0)


def test_the_text_of_a_row_is_followed_by_zeros(tiny: Path, images: Tensor, reference: Callable) -> None:
    found, plain = read(tiny, images, ["layers.1/text"])["layers.1/text"], reference(images, ["layers.1"])
    assert found.shape == (5, 32, LENGTH, 1)
    for row, tokens, n in zip(found, plain["layers.1"], plain["lengths"], strict=True):
        torch.testing.assert_close(row[:, :n, 0].T, tokens[START : START + n], atol=1e-5, rtol=0)
        assert not row[:, n:].any()


def test_attention_equals_a_plain_computation(
    tiny: Path, images: Tensor, reference: Callable, pipeline: Any, as_map: Callable
) -> None:
    """Queries and keys are normalised and turned; the image attends to both fillings too."""
    path = "layers.1.attention"
    found = read(tiny, images, [f"{path}/{name}" for name in ("probs", "logits", "q", "k", "v", "heads")])
    turned: list[Tensor] = []
    block = pipeline.transformer.layers[1]
    handle = block.register_forward_pre_hook(lambda module, args: turned.append(args[2]))
    plain = reference(images, [f"{path}.norm_q", f"{path}.norm_k", f"{path}.to_v"])
    handle.remove()
    turn, image = turned[0], slice(0, N_IMAGE)
    for i, n in enumerate(plain["lengths"]):
        pairs = (plain[f"{path}.norm_{name}"][i, : START + n].double().unflatten(-1, (-1, 2)) for name in "qk")
        numbers = (torch.view_as_complex(x.contiguous()) * turn[i, : START + n, None] for x in pairs)
        q, k = (torch.view_as_real(x).flatten(-2) for x in numbers)
        v = plain[f"{path}.to_v"][i, : START + n].double().unflatten(-1, (2, -1))
        logits = torch.einsum("ihd,jhd->hij", q[image], k) / 4
        probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
        for readout, scores in (("logits", logits), ("probs", probs)):
            own = found[f"{path}/{readout}"][i].flatten(1)
            assert own.shape == (LENGTH, N_IMAGE) and not own[n:].any()
            torch.testing.assert_close(own[:n], scores.mean(0)[:, START:].T.float(), atol=1e-5, rtol=0)
        heads = torch.einsum("hij,jhd->ihd", probs, v)
        for part, tokens in (("q", q[image]), ("k", k[image]), ("v", v[image]), ("heads", heads)):
            expected = as_map(tokens.flatten(1)[None])[0].float()
            torch.testing.assert_close(found[f"{path}/{part}"][i], expected, atol=1e-5, rtol=0)


def test_parts_of_a_refiner_are_those_of_the_image(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable, pipeline: Any
) -> None:
    path = "noise_refiner.0.attention"
    found, plain = read(tiny, images, [f"{path}/heads"])[f"{path}/heads"], reference(images, [path])
    weight = pipeline.transformer.noise_refiner[0].attention.to_out[0].weight
    mixed = torch.einsum("oc,bchw->bohw", weight, found)
    torch.testing.assert_close(mixed, as_map(plain[path][:, :N_IMAGE]), atol=1e-5, rtol=0)


def test_texts_are_those_of_the_pipeline_without_their_padding(tiny: Path, pipeline: Any) -> None:
    model = DenoisingError.from_pretrained(str(tiny), device="cpu", resolution=SIDE)
    with torch.no_grad():
        found = model.encode_conditions(["red cat", ""])
        expected, _ = pipeline.encode_prompt(["red cat", ""], do_classifier_free_guidance=False)
    for states, mask, text in zip(found["states"], found["mask"], expected, strict=True):
        torch.testing.assert_close(states[mask.bool()], text, atol=1e-5, rtol=0)
    encoder: Any = model.backbone.components()["text_encoder"]
    assert len(encoder.layers) == 2  # the last layer of three is not read


def test_texts_change_features_and_other_rows_do_not(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny, condition="caption")
    (mixed,) = loaded(images, keys=KEYS, captions=CAPTIONS).values()
    (alone,) = loaded(images[:1], keys=KEYS[:1], captions=CAPTIONS[:1]).values()
    (other,) = loaded(images[:1], keys=KEYS[:1], captions=["moon"]).values()
    torch.testing.assert_close(mixed[:1], alone, atol=1e-5, rtol=0)
    assert float((alone - other).abs().max()) > 1e-4
    names = set(loaded._backbone.denoiser.state_dict())
    assert any(name.startswith("context_refiner.0") for name in names)
    assert not any(name.startswith(("layers.2", "all_final_layer")) for name in names)


@pytest.mark.parametrize("tap", ["context_refiner.0", "context_refiner.0.attention.norm_q", "cap_embedder"])
def test_modules_of_the_text_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny), taps=[tap], timesteps=[0], resolution=32)


def test_joint_blocks_have_a_text_and_refiners_have_none(tiny: Path) -> None:
    taps = {tap.path: tap.warnings for tap in list_taps(str(tiny), resolution=SIDE, inner=True)}
    assert [path for path in taps if path.endswith("/probs")] == [f"layers.{i}.attention/probs" for i in range(3)]
    assert "text" in taps["layers.0"] and not taps["noise_refiner.0"] and "noise_refiner.0/text" not in taps
    assert set(APART) <= set(taps)


def test_the_conditioning_and_the_resolution_are_the_pipelines(tiny: Path) -> None:
    plan = plan_for(str(tiny), taps=["layers.*"], timesteps=[0])
    assert plan.fingerprint["conditioning"] == {"text_tokens": LENGTH} and plan.resolution == 256


def test_a_resolution_beyond_the_positions_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="resolution 260") as caught:
        plan_for(str(tiny), taps=["*"], timesteps=[0], resolution=260)
    assert "allowed: at most 256" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "SD3Transformer2DModel"}, "SD3Transformer2DModel.* ZImageTransformer2DModel"),
        ("transformer", {"axes_lens": [513, 64, 64]}, "513 positions"),
        ("transformer", {"all_patch_size": [4]}, "patches of .*4, 1"),
        ("transformer", {"siglip_feat_dim": 8}, "siglip_feat_dim"),
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
        plan_for(str(folder), taps=["*"], timesteps=[0], resolution=32)
