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
from diffprobe.backbones.families import cogvideox
from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.backbones.samplers import start_key
from diffprobe.backbones.taps import list_taps
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import ConfigError, UnknownTap, WeightsMismatch
from diffprobe.core.rng import noise_for
from tests.backbones.plans import plan_for

KEYS = list("abcde")
CAPTIONS = ["Red cat", "", "a photo of the {moon}", "dog", "twemoji emoji, blue circle"]
BLOCK = "transformer_blocks.1"
ATTENTION = f"{BLOCK}.attn1"
FIRST = [BLOCK, ATTENTION, f"{BLOCK}.norm1", "norm_final", "proj_out"]
JOINT = ["patch_embed", f"{BLOCK}.ff", f"{ATTENTION}.to_q"]
T, LENGTH, SIDE = 261, 226, 32
KINDS = {"5b": True, "2b": False}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cogvideox")
    for name, rotary in KINDS.items():
        cogvideox.tiny(root / name, rotary=rotary)
    return root


@pytest.fixture(scope="module")
def pipelines(tiny: Path) -> dict[str, Any]:
    import diffusers

    found = {name: diffusers.CogVideoXPipeline.from_pretrained(tiny / name) for name in KINDS}
    for pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
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
def reference(pipelines: dict[str, Any], plain_hooks: Callable) -> Callable[..., dict[str, Any]]:
    """Call the pipeline for what it gives its transformer; run that with the latents of images, and plain hooks.

    Latents are noised by the pipeline's own scheduler.
    """

    @torch.no_grad()
    def run(images: Tensor, taps: list[str], name: str = "5b") -> dict[str, Any]:
        pipeline = pipelines[name]
        given: dict[str, Any] = {}

        def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given.update(kwargs)

        handle = pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
        size = images.shape[2]
        pipeline(
            CAPTIONS, height=size, width=size, num_frames=1, guidance_scale=1.0, num_inference_steps=1,
            output_type="latent",
        )  # fmt: skip
        handle.remove()
        frame = pipeline.vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()[:, :, 0]
        clean = frame * pipeline.vae.config.scaling_factor
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
        timestep = torch.full((5,), T)
        x_t = pipeline.scheduler.add_noise(clean, noise, timestep)[:, None]
        assert given["hidden_states"].shape == x_t.shape
        found = plain_hooks(pipeline.transformer, taps, **{**given, "hidden_states": x_t, "timestep": timestep})
        return {**found, "positions": given["image_rotary_emb"]}

    return run


@pytest.mark.parametrize("side", [SIDE, 64])
@pytest.mark.parametrize("name", list(KINDS))
def test_taps_equal_plain_hooks_on_the_untouched_pipeline(
    name: str, side: int, tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    images = torch.nn.functional.interpolate(images, size=(side, side), mode="bilinear")
    found = read(tiny / name, images, ["patch_embed.proj", *FIRST, *JOINT], resolution=side)
    plain = reference(images, ["patch_embed.proj", *FIRST, *JOINT], name)
    for tap in FIRST:
        tokens = plain[tap][0] if isinstance(plain[tap], tuple) else plain[tap]
        torch.testing.assert_close(found[tap], as_map(tokens), atol=1e-5, rtol=0)
    for tap in JOINT:
        torch.testing.assert_close(found[tap], as_map(plain[tap][:, LENGTH:]), atol=1e-5, rtol=0)
    torch.testing.assert_close(found["patch_embed.proj"], plain["patch_embed.proj"], atol=1e-5, rtol=0)


def test_the_text_stream_is_that_of_the_block(tiny: Path, images: Tensor, reference: Callable) -> None:
    found, plain = read(tiny / "5b", images, [f"{BLOCK}/text"]), reference(images, [BLOCK])
    expected = plain[BLOCK][1].transpose(1, 2)[..., None]
    assert expected.shape[2] == LENGTH
    torch.testing.assert_close(found[f"{BLOCK}/text"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", list(KINDS))
def test_joint_attention_equals_a_plain_computation(
    name: str, tiny: Path, images: Tensor, reference: Callable, as_map: Callable, pipelines: dict[str, Any]
) -> None:
    """Queries and keys of the image alone are turned, and places attend to padding, too."""
    found = read(tiny / name, images, [f"{ATTENTION}/{x}" for x in ("probs", "logits", "q", "k", "v", "heads")])
    plain = reference(images, [f"{ATTENTION}.{x}" for x in ("to_q", "to_k", "to_v")], name)
    attn, parts = pipelines[name].transformer.get_submodule(ATTENTION), {}
    for x, norm in (("q", attn.norm_q), ("k", attn.norm_k)):
        heads = plain[f"{ATTENTION}.to_{x}"].double().unflatten(-1, (2, -1))
        heads = heads - heads.mean(-1, keepdim=True)
        heads = heads / (heads.pow(2).mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight.double() + norm.bias
        if plain["positions"] is not None:
            cos, sin = (x.double()[:, None] for x in plain["positions"])
            image = heads[:, LENGTH:]
            turned = torch.stack([-image[..., 1::2], image[..., 0::2]], dim=-1).flatten(-2)
            heads = torch.cat([heads[:, :LENGTH], image * cos + turned * sin], dim=1)
        parts[x] = heads.detach()
    parts["v"] = plain[f"{ATTENTION}.to_v"].double().unflatten(-1, (2, -1))
    logits = torch.einsum("bihd,bjhd->bhij", parts["q"][:, LENGTH:], parts["k"]) / 4
    probs = logits.softmax(-1)
    parts["heads"] = torch.cat([parts["v"][:, :LENGTH], torch.einsum("bhij,bjhd->bihd", probs, parts["v"])], dim=1)
    for readout, scores in (("logits", logits), ("probs", probs)):
        own = found[f"{ATTENTION}/{readout}"].flatten(2)
        expected = scores.mean(1)[..., :LENGTH].transpose(1, 2).float()
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=0)
    assert float(found[f"{ATTENTION}/probs"].min()) > 0
    for part, tokens in parts.items():
        expected = as_map(tokens[:, LENGTH:].flatten(2)).float()
        torch.testing.assert_close(found[f"{ATTENTION}/{part}"], expected, atol=1e-5, rtol=0)


def test_modulated_taps_have_the_weight_and_bias_of_the_norm(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable, pipelines: dict[str, Any]
) -> None:
    found = read(tiny / "5b", images, [f"{BLOCK}/modulated"])[f"{BLOCK}/modulated"]
    plain = reference(images, [BLOCK, f"{BLOCK}.norm1.linear"])
    shift, scale = (x[:, None] for x in plain[f"{BLOCK}.norm1.linear"].chunk(6, dim=-1)[:2])
    norm, x = pipelines["5b"].transformer.get_submodule(f"{BLOCK}.norm1.norm"), plain[BLOCK][0]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    expected = (x * norm.weight + norm.bias) * (1 + scale) + shift
    torch.testing.assert_close(found, as_map(expected.detach()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", list(KINDS))
def test_prompts_are_sampled_as_in_the_pipeline_with_one_frame(
    name: str, tiny: Path, pipelines: dict[str, Any]
) -> None:
    """By its own scheduler, whose signal-to-noise ratio is shifted."""
    prompts, numbers = ["a red cat", "the moon"], [0, 1]
    config = PromptExtraction(
        backbone=BackboneConfig(path=str(tiny / name), device="cpu"),
        prompts="unused.txt",
        features=PromptFeaturesConfig(
            taps=(BLOCK,), timesteps=(999,), pool="none", keep=("latents", "images"), resolution=SIDE
        ),
        sampling=SamplingConfig(steps=4, seeds=2, sampler="ddim", guidance=3.0),
    )
    found = PromptFeatures.from_config(config)(prompts, numbers)
    pipeline = pipelines[name]
    noise = torch.stack([noise_for(0, start_key(number), 0, (4, 16, 16)) for number in numbers])[:, None]
    latents, frames = (
        pipeline(
            prompts, height=SIDE, width=SIDE, num_frames=1, num_inference_steps=4, guidance_scale=4.0, latents=noise,
            output_type=form,
        ).frames
        for form in ("latent", "pt")
    )  # fmt: skip
    scale = float(latents.abs().max())
    torch.testing.assert_close(found["latents@t0:caption:none"], latents[:, 0], atol=2e-5 * scale, rtol=0)
    torch.testing.assert_close(found["pixels@t0:caption:none"], frames[:, 0], atol=1e-4, rtol=0)


def test_texts_change_features_and_their_encoder_is_freed(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny / "5b", condition="prompt", prompt="red cat", unconditional=True)
    assert "text_encoder" in loaded._backbone.components()
    prompt, empty = loaded(images, keys=KEYS).values()
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    assert float((prompt - empty).abs().max()) > 1e-4


def test_the_cut_model_lacks_the_later_blocks_and_the_decoder(tiny: Path) -> None:
    parts = features(tiny / "2b")._backbone.components()
    names = set(parts["denoiser"].state_dict())
    assert any(name.startswith(f"{BLOCK}.ff") for name in names)
    assert not any(name.startswith(("transformer_blocks.2", "norm_out", "proj_out")) for name in names)
    assert not any(name.startswith(("decoder", "post_quant_conv")) for name in parts["vae"].state_dict())


def test_blocks_are_marked_and_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(tiny / "5b"), inner=True)}
    assert taps[BLOCK].warnings == ("massive", "text") and taps[f"{ATTENTION}/probs"].channels == LENGTH
    plans = [plan_for(str(tiny / name), taps=["*"], timesteps=[0]) for name in KINDS]
    assert plans[0].resolution == 32 and plans[0].fingerprint["conditioning"] == {"text_tokens": LENGTH}
    assert plans[0].schedule.digest != plans[1].schedule.digest


def test_a_check_reads_every_part_and_estimates_the_memory(tiny: Path) -> None:
    report = check_backbone(str(tiny / "5b"))
    assert report.faults == [] and report.family == "cogvideox"
    assert {part.name for part in report.parts if part.n_parameters} == {"transformer", "vae", "text_encoder"}
    assert report.memory is not None and report.memory.encoding > 0 and report.memory.denoising > 0


@pytest.mark.parametrize("tap", ["patch_embed.text_proj", "time_embedding", f"{BLOCK}.norm1.norm"])
def test_modules_without_the_image_alone_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny / "5b"), taps=[tap], timesteps=[0])


def test_a_resolution_without_whole_tokens_is_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="multiples of 4"):
        plan_for(str(tiny / "5b"), taps=["*"], timesteps=[0], resolution=34)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "CogView4Transformer2DModel"}, f"CogView4.* {cogvideox._KIND}"),
        ("transformer", {"patch_size_t": 2}, "patch_size_t is 2.* CogVideoX 1.5"),
        ("transformer", {"ofs_embed_dim": 16}, "ofs_embed_dim"),
        ("transformer", {"use_learned_positional_embeddings": True}, "use_learned_positional_embeddings"),
        ("transformer", {"max_text_seq_length": 300}, "300 tokens"),
        ("transformer", {"out_channels": 8}, "4 latent channels .* 8"),
        ("transformer", {"in_channels": 8, "out_channels": 8}, "8 latent channels.* 4"),
        ("transformer", {"text_embed_dim": 48}, "text encoder .* 32 .* 48"),
        ("vae", {"_class_name": "AutoencoderKL"}, "AutoencoderKL; .* AutoencoderKLCogVideoX"),
        ("vae", {"latents_mean": [0.0] * 4}, "normalises latents by channel"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny / "5b", tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0])
