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
from diffprobe.backbones.families import ltx
from diffprobe.backbones.taps import list_taps
from diffprobe.backbones.vae import VaeDecoder
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from diffprobe.core.rng import noise_for
from diffprobe.scoring.denoising_error import DenoisingError
from diffprobe.scoring.generated_images import generated_latents
from diffprobe.scoring.noise_sets import stack_noise
from diffprobe.scoring.sampling import sampling_timesteps
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the {moon}", "dog", "twemoji emoji, blue circle"]
BLOCK = "transformer_blocks.1"
TAPS = ["proj_in", BLOCK, *(f"transformer_blocks.0.{x}" for x in ("attn1", "attn2", "attn2.norm_q", "ff")), "proj_out"]
T, LENGTH, SIDE = 261, 128, 32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ltx.tiny(tmp_path_factory.mktemp("ltx") / "tiny")


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Any:
    import diffusers

    found = diffusers.LTXPipeline.from_pretrained(tiny)
    found.set_progress_bar_config(disable=True)
    return found


def features(folder: Path, **settings: object) -> DiffusionFeatures:
    chosen = {"taps": [BLOCK], "timesteps": [T], "device": "cpu", "resolution": SIDE, **settings}
    return DiffusionFeatures.from_pretrained(str(folder), **chosen)  # type: ignore[arg-type]


def read(folder: Path, images: Tensor, taps: list[str], **settings: object) -> dict[str, Tensor]:
    """Read taps for captions, by the tap alone."""
    chosen = {"taps": taps, "condition": "caption", "pool": "none", **settings}
    found = features(folder, **chosen)(images, keys=KEYS, captions=CAPTIONS)
    return {cell.partition("@")[0]: value for cell, value in found.items()}


@pytest.fixture
def reference(pipeline: Any, plain_hooks: Callable) -> Callable[..., dict[str, Any]]:
    """Call the pipeline for what it gives its transformer; run that with the latents of images, and plain hooks."""

    @torch.no_grad()
    def run(images: Tensor, taps: list[str]) -> dict[str, Any]:
        given: dict[str, Any] = {}

        def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given.update(kwargs)

        handle = pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
        pipeline(
            CAPTIONS, height=SIDE, width=SIDE, num_frames=1, guidance_scale=1.0, num_inference_steps=2,
            output_type="latent",
        )  # fmt: skip
        handle.remove()
        vae = pipeline.vae
        mode = vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()
        clean = pipeline._normalize_latents(mode, vae.latents_mean, vae.latents_std, vae.config.scaling_factor)
        noise = torch.stack([noise_for(0, key, 0, tuple(clean[0, :, 0].shape)) for key in KEYS])[:, :, None]
        x_t = pipeline._pack_latents((1 - T / 1000) * clean + T / 1000 * noise)
        assert given["hidden_states"].shape == x_t.shape
        changes = {"hidden_states": x_t, "timestep": torch.full((5,), float(T))}
        found = plain_hooks(pipeline.transformer, ["rope", *taps], **{**given, **changes})
        return {**found, "mask": given["encoder_attention_mask"]}

    return run


def test_taps_equal_plain_hooks_on_the_untouched_pipeline(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    found, plain = read(tiny, images, TAPS), reference(images, TAPS)
    for tap in TAPS:
        torch.testing.assert_close(found[tap], as_map(plain[tap]), atol=1e-5, rtol=0)


def test_cross_attention_equals_a_plain_computation_and_hides_padding(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    path = f"{BLOCK}.attn2"
    found = read(tiny, images, [f"{path}/{name}" for name in ("probs", "logits", "q", "k", "v", "heads")])
    plain = reference(images, [f"{path}.{name}" for name in ("norm_q", "norm_k", "to_v")])
    q, k, v = (plain[f"{path}.{name}"].double().unflatten(-1, (2, -1)) for name in ("norm_q", "norm_k", "to_v"))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) / 4
    hidden = ~plain["mask"].bool()
    probs = logits.masked_fill(hidden[:, None, None], -torch.inf).softmax(-1)
    assert len(set(hidden.sum(1).tolist())) > 2
    for readout, scores in (("logits", logits), ("probs", probs)):
        own = found[f"{path}/{readout}"].flatten(2)
        assert own.shape == (5, LENGTH, 64)
        torch.testing.assert_close(own, scores.mean(1).transpose(1, 2).float(), atol=1e-5, rtol=0)
    for part, tokens in (("k", k), ("v", v)):
        expected = tokens.flatten(2).transpose(1, 2)[..., None].float()
        torch.testing.assert_close(found[f"{path}/{part}"], expected, atol=1e-5, rtol=0)
    for part, tokens in (("q", q), ("heads", torch.einsum("bhij,bjhd->bihd", probs, v))):
        torch.testing.assert_close(found[f"{path}/{part}"], as_map(tokens.flatten(2)).float(), atol=1e-5, rtol=0)


def test_self_attention_parts_are_turned_by_the_network(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    path = f"{BLOCK}.attn1"
    found = read(tiny, images, [f"{path}/{name}" for name in ("q", "k", "v", "heads")])
    plain = reference(images, [f"{path}.{name}" for name in ("norm_q", "norm_k", "to_v")])
    cos, sin = (x.double() for x in plain["rope"])

    def turned(x: Tensor) -> Tensor:
        x = x.double()
        return (x * cos + torch.stack([-x[..., 1::2], x[..., 0::2]], dim=-1).flatten(-2) * sin).unflatten(-1, (2, -1))

    q, k = (turned(plain[f"{path}.{name}"]) for name in ("norm_q", "norm_k"))
    v = plain[f"{path}.to_v"].double().unflatten(-1, (2, -1))
    heads = torch.einsum("bhij,bjhd->bihd", (torch.einsum("bihd,bjhd->bhij", q, k) / 4).softmax(-1), v)
    for name, tokens in (("q", q), ("k", k), ("v", v), ("heads", heads)):
        torch.testing.assert_close(found[f"{path}/{name}"], as_map(tokens.flatten(2)).float(), atol=1e-5, rtol=0)


def test_modulated_taps_have_an_rms_norm(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable, pipeline: Any
) -> None:
    found = read(tiny, images, [f"{BLOCK}/modulated"])[f"{BLOCK}/modulated"]
    plain = reference(images, [BLOCK, "time_embed"])
    table = pipeline.transformer.get_submodule(BLOCK).scale_shift_table.detach()
    shift, scale = (table + plain["time_embed"][0].unflatten(1, (6, -1)))[:, :2].split(1, dim=1)
    x = plain[BLOCK]
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(found, as_map(x * (1 + scale) + shift), atol=1e-5, rtol=0)


def test_a_norm_with_a_scale_of_its_own_has_no_such_readout(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"norm_elementwise_affine": True}))
    assert not any(tap.path.endswith("/modulated") for tap in list_taps(str(folder), resolution=SIDE, inner=True))


def test_sampling_is_that_of_the_pipeline_with_one_frame(tiny: Path, pipeline: Any) -> None:
    import diffusers

    prompts = CAPTIONS[:2]
    model = DenoisingError.from_pretrained(str(tiny), device="cpu", resolution=SIDE)
    found = generated_latents(model, KEYS[:2], model.encode_conditions(prompts), steps=4, guidance=3.0, seed=0)
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    steps, own, set_timesteps = sampling_timesteps(4, 1001), pipeline.scheduler, scheduler.set_timesteps
    times = [t / 1000 for t in steps]
    scheduler.set_timesteps = lambda sigmas, device, mu: set_timesteps(sigmas=times, device=device)
    noise = stack_noise(0, [f"generated:{key}" for key in KEYS[:2]], 0, model.spec.latent_shape)
    pipeline.scheduler = scheduler
    latents, frames = (
        pipeline(
            prompts, height=SIDE, width=SIDE, num_frames=1, num_inference_steps=4, guidance_scale=3.0,
            latents=noise.flatten(2).transpose(1, 2), output_type=form,
        ).frames
        for form in ("latent", "pt")
    )  # fmt: skip
    pipeline.scheduler = own
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), latents, atol=1e-4, rtol=0)
    torch.testing.assert_close(VaeDecoder.from_folder(tiny / "vae")(found), frames[:, 0], atol=1e-4, rtol=0)


def test_texts_change_features_and_their_encoder_is_freed(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny, condition="prompt", prompt="red cat", unconditional=True)
    assert "text_encoder" in loaded._backbone.components()
    prompt, empty = loaded(images, keys=KEYS).values()
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    assert float((prompt - empty).abs().max()) > 1e-4


def test_the_cut_model_lacks_the_later_blocks_and_the_decoder(tiny: Path) -> None:
    parts = features(tiny)._backbone.components()
    names = set(parts["denoiser"].state_dict())
    assert any(name.startswith(f"{BLOCK}.ff") for name in names)
    assert not any(name.startswith(("transformer_blocks.2", "proj_out")) for name in names)
    assert not any(name.startswith("decoder") for name in parts["vae"].state_dict())


def test_blocks_are_marked_and_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(tiny), resolution=SIDE, inner=True)}
    assert "massive" in taps[BLOCK].warnings and taps[f"{BLOCK}.attn2/probs"].channels == LENGTH
    plan = plan_for(str(tiny), taps=["*"], timesteps=[0])
    assert plan.resolution == 64 and plan.fingerprint["conditioning"] == {"text_tokens": LENGTH}


def test_a_check_reads_every_part_and_estimates_the_memory(tiny: Path) -> None:
    report = check_backbone(str(tiny), resolution=SIDE)
    assert report.faults == [] and report.family == "ltx"
    assert {part.name for part in report.parts if part.n_parameters} == {"transformer", "vae", "text_encoder"}
    assert report.memory is not None and report.memory.encoding > 0 and report.memory.denoising > 0


@pytest.mark.parametrize("tap", ["rope", "caption_projection", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.norm_k"])
def test_modules_without_the_image_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny), taps=[tap], timesteps=[0], resolution=SIDE)


def test_a_resolution_without_whole_latents_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="multiples of 4"):
        plan_for(str(tiny), taps=["*"], timesteps=[0], resolution=34)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "LTX2VideoTransformer3DModel"}, f"LTX2.* {ltx._KIND}"),
        ("transformer", {"patch_size_t": 2}, "patch_size_t 2"),
        ("transformer", {"out_channels": 8}, "4 latent channels .* 8"),
        ("transformer", {"in_channels": 8, "out_channels": 8}, "8 latent channels.* 4"),
        ("transformer", {"caption_channels": 48}, "text encoder .* 24 .* 48"),
        ("vae", {"_class_name": "AutoencoderKL"}, "AutoencoderKL; .* AutoencoderKLLTXVideo"),
        ("vae", {"spatial_compression_ratio": 8}, "spatial_compression_ratio is 8"),
        ("vae", {"down_block_types": ["LTXVideo095DownBlock3D"] * 2}, "LTXVideo095DownBlock3D"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0], resolution=SIDE)
