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
from diffprobe.backbones.families import family_of, wan
from diffprobe.backbones.locate import locate
from diffprobe.backbones.offload import offload_of
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
CAPTIONS = ["Red cat", "", "a photo of the {moon} &amp;  the sun", "dog", "twemoji emoji, blue circle"]
BLOCK = "blocks.1"
TAPS = [BLOCK, *(f"blocks.0.{name}" for name in ("attn1", "attn2", "attn1.norm_q", "ffn", "norm3")), "proj_out"]
T, LENGTH, SIDE = 261, 512, 32
KINDS = ("2.1", "2.2")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wan")
    for kind in KINDS:
        wan.tiny(root / kind, kind=kind)  # type: ignore[arg-type]
    return root


@pytest.fixture(scope="module")
def pipelines(tiny: Path) -> dict[str, Any]:
    import diffusers

    found = {kind: diffusers.WanPipeline.from_pretrained(tiny / kind) for kind in KINDS}
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


def statistics(pipeline: Any) -> tuple[Tensor, Tensor]:
    mean, std = (torch.tensor(pipeline.vae.config[name])[:, None, None] for name in ("latents_mean", "latents_std"))
    return mean, std


@pytest.fixture
def reference(pipelines: dict[str, Any], plain_hooks: Callable) -> Callable[..., dict[str, Any]]:
    """Call the pipeline for what it gives its transformer; run that with the latents of images, and plain hooks."""

    @torch.no_grad()
    def run(images: Tensor, taps: list[str], kind: str = "2.1") -> dict[str, Any]:
        pipeline = pipelines[kind]
        given: dict[str, Any] = {}

        def note(module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            given.update(kwargs)

        handle = pipeline.transformer.register_forward_pre_hook(note, with_kwargs=True)
        pipeline(
            CAPTIONS, height=SIDE, width=SIDE, num_frames=1, guidance_scale=1.0, num_inference_steps=1,
            output_type="latent",
        )  # fmt: skip
        handle.remove()
        mean, std = statistics(pipeline)
        clean = (pipeline.vae.encode(images[:, :, None] * 2 - 1).latent_dist.mode()[:, :, 0] - mean) / std
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in KEYS])
        x_t = ((1 - T / 1000) * clean + T / 1000 * noise)[:, :, None]
        assert given["hidden_states"].shape == x_t.shape
        timestep = torch.full_like(given["timestep"], T)
        return plain_hooks(pipeline.transformer, taps, **{**given, "hidden_states": x_t, "timestep": timestep})

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_taps_equal_plain_hooks_on_the_untouched_pipeline(
    kind: str, tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """The pipeline of 2.2 gives its transformer a timestep per place."""
    found = read(tiny / kind, images, ["patch_embedding", *TAPS])
    plain = reference(images, ["patch_embedding", *TAPS], kind)
    for tap in TAPS:
        torch.testing.assert_close(found[tap], as_map(plain[tap]), atol=1e-5, rtol=0)
    assert plain["patch_embedding"].shape[2] == 1
    torch.testing.assert_close(found["patch_embedding"], plain["patch_embedding"][:, :, 0], atol=1e-5, rtol=0)


def test_the_second_one_takes_a_timestep_per_place(tiny: Path, pipelines: dict[str, Any]) -> None:
    seen: list[Tensor] = []
    for kind in KINDS:
        pipeline = pipelines[kind]
        handle = pipeline.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(kwargs["timestep"]), with_kwargs=True
        )
        pipeline("cat", height=SIDE, width=SIDE, num_frames=1, num_inference_steps=1, guidance_scale=1.0)
        handle.remove()
    assert [x.shape for x in seen] == [(1,), (1, 16)] and len(seen[1].unique()) == 1


def test_cross_attention_equals_a_plain_computation_and_sees_padding(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    path = f"{BLOCK}.attn2"
    found = read(tiny / "2.1", images, [f"{path}/{name}" for name in ("probs", "logits", "q", "k", "v", "heads")])
    plain = reference(images, [f"{path}.{name}" for name in ("norm_q", "norm_k", "to_v")])
    q, k, v = (plain[f"{path}.{name}"].double().unflatten(-1, (2, -1)) for name in ("norm_q", "norm_k", "to_v"))
    logits = torch.einsum("bihd,bjhd->bhij", q, k) / 4
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    for readout, scores in (("logits", logits), ("probs", probs)):
        own = found[f"{path}/{readout}"].flatten(2)
        assert own.shape == (5, LENGTH, 64)
        torch.testing.assert_close(own, scores.mean(1).transpose(1, 2).float(), atol=1e-5, rtol=0)
    padding = found[f"{path}/probs"][:, 100:]
    assert float(padding.min()) > 0
    torch.testing.assert_close(padding, padding[:, :1].expand_as(padding), atol=1e-7, rtol=0)
    for part, tokens in (("k", k), ("v", v)):
        expected = tokens.flatten(2).transpose(1, 2)[..., None].float()
        torch.testing.assert_close(found[f"{path}/{part}"], expected, atol=1e-5, rtol=0)
    for part, tokens in (("q", q), ("heads", torch.einsum("bhij,bjhd->bihd", probs, v))):
        torch.testing.assert_close(found[f"{path}/{part}"], as_map(tokens.flatten(2)).float(), atol=1e-5, rtol=0)


def test_self_attention_parts_are_turned_by_place(
    tiny: Path, images: Tensor, reference: Callable, as_map: Callable
) -> None:
    """Of 16 channels of a head the first 8 are of time, where the only frame is at 0; 4 are of rows, 4 of columns."""
    path = f"{BLOCK}.attn1"
    found = read(tiny / "2.1", images, [f"{path}/{name}" for name in ("q", "k", "v", "heads")])
    plain = reference(images, [f"{path}.{name}" for name in ("norm_q", "norm_k", "to_v")])
    places = torch.cartesian_prod(torch.arange(8), torch.arange(8)).double()
    speeds = 10000.0 ** -(torch.arange(2).double() / 2)
    angles = torch.cat([torch.zeros(64, 4), *(places[:, [axis]] * speeds for axis in (0, 1))], dim=1)
    turns = torch.polar(torch.ones_like(angles), angles)[:, None]

    def turned(x: Tensor) -> Tensor:
        heads = x.double().unflatten(-1, (2, -1, 2))
        return torch.view_as_real(torch.view_as_complex(heads) * turns).flatten(-2)

    q, k = (turned(plain[f"{path}.{name}"]) for name in ("norm_q", "norm_k"))
    v = plain[f"{path}.to_v"].double().unflatten(-1, (2, -1))
    heads = torch.einsum("bhij,bjhd->bihd", (torch.einsum("bihd,bjhd->bhij", q, k) / 4).softmax(-1), v)
    for name, tokens in (("q", q), ("k", k), ("v", v), ("heads", heads)):
        torch.testing.assert_close(found[f"{path}/{name}"], as_map(tokens.flatten(2)).float(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_modulated_taps_are_what_the_attention_reads(
    kind: str, tiny: Path, images: Tensor, reference: Callable, as_map: Callable, pipelines: dict[str, Any]
) -> None:
    found = read(tiny / kind, images, [f"{BLOCK}/modulated"])[f"{BLOCK}/modulated"]
    plain = reference(images, [BLOCK, "condition_embedder"], kind)
    table = pipelines[kind].transformer.get_submodule(BLOCK).scale_shift_table.detach()
    parts = plain["condition_embedder"][1]
    parts = parts if kind == "2.1" else parts[:, 0]  # the same at all places
    shift, scale = (table + parts.unflatten(1, (6, -1)))[:, :2].split(1, dim=1)
    x = plain[BLOCK]
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(found, as_map(x * (1 + scale) + shift), atol=1e-5, rtol=0)


def test_texts_are_cleaned_and_padded_with_zeros_as_in_the_pipeline(tiny: Path, pipelines: dict[str, Any]) -> None:
    model = DenoisingError.from_pretrained(str(tiny / "2.1"), device="cpu", resolution=SIDE)
    with torch.no_grad():
        found = model.encode_conditions(CAPTIONS)["encoder_hidden_states"]
        expected = pipelines["2.1"]._get_t5_prompt_embeds(CAPTIONS, max_sequence_length=LENGTH)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    lengths = found.any(-1).sum(1)
    assert len(set(lengths.tolist())) > 2 and not found[:, int(lengths.max()) :].any()


def test_texts_change_features_and_their_encoder_is_freed(tiny: Path, images: Tensor) -> None:
    loaded = features(tiny / "2.1", condition="prompt", prompt="red cat", unconditional=True)
    assert "text_encoder" in loaded._backbone.components()
    prompt, empty = loaded(images, keys=KEYS).values()
    assert set(loaded._backbone.components()) == {"denoiser", "vae"}
    assert float((prompt - empty).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_sampling_is_that_of_the_pipeline_with_one_frame(kind: str, tiny: Path, pipelines: dict[str, Any]) -> None:
    import diffusers

    pipeline, prompts = pipelines[kind], CAPTIONS[:2]
    model = DenoisingError.from_pretrained(str(tiny / kind), device="cpu", resolution=SIDE)
    found = generated_latents(model, KEYS[:2], model.encode_conditions(prompts), steps=4, guidance=3.0, seed=0)
    scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    steps, own, set_timesteps = sampling_timesteps(4, 1001), pipeline.scheduler, scheduler.set_timesteps
    scheduler.set_timesteps = lambda n, device: set_timesteps(sigmas=[t / 1000 for t in steps], device=device)
    noise = stack_noise(0, [f"generated:{key}" for key in KEYS[:2]], 0, model.spec.latent_shape)[:, :, None]
    pipeline.scheduler = scheduler
    latents, frames = (
        pipeline(
            prompts, height=SIDE, width=SIDE, num_frames=1, num_inference_steps=4, guidance_scale=3.0,
            latents=noise, output_type=form,
        ).frames
        for form in ("latent", "pt")
    )  # fmt: skip
    pipeline.scheduler = own
    torch.testing.assert_close(found, latents[:, :, 0], atol=1e-4, rtol=0)
    decoded = VaeDecoder.from_folder(tiny / kind / "vae")(found)
    torch.testing.assert_close(decoded, frames[:, 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"random_weights": True}], ids=["trained", "random"])
def test_layers_of_time_and_norms_stay_in_float32(settings: dict[str, Any], tiny: Path, images: Tensor) -> None:
    """As diffusers loads them; blocks in files too, which give the same bit for bit."""
    whole = features(tiny / "2.1", dtype="bfloat16", **settings)
    network = whole._backbone.denoiser
    kept = {name for name, value in network.named_parameters() if value.dtype == torch.float32}
    stated = {"time_embedder", "scale_shift_table", "norm2"}
    assert kept == {name for name, _ in network.named_parameters() if stated & set(name.split("."))}
    assert network.get_buffer("rope.freqs_cos").dtype == torch.float32
    parts = features(tiny / "2.1", dtype="bfloat16", offload="blocks", **settings)
    assert offload_of(parts._backbone.denoiser) is not None
    for _ in range(2):
        (found,), (expected,) = parts(images, keys=KEYS).values(), whole(images, keys=KEYS).values()
        assert torch.equal(found, expected)


def test_the_cut_model_lacks_the_later_blocks_and_the_decoder(tiny: Path) -> None:
    parts = features(tiny / "2.1")._backbone.components()
    names = set(parts["denoiser"].state_dict())
    assert any(name.startswith("blocks.1.ffn") for name in names)
    assert not any(name.startswith(("blocks.2", "proj_out")) for name in names)
    assert not any(name.startswith(("decoder", "post_quant_conv")) for name in parts["vae"].state_dict())


@pytest.mark.parametrize(
    "tap",
    ["rope", "condition_embedder", "condition_embedder.text_embedder", f"{BLOCK}.attn2.to_k", f"{BLOCK}.attn2.norm_k"],
)
def test_modules_without_the_image_are_no_taps(tap: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=tap):
        plan_for(str(tiny / "2.1"), taps=[tap], timesteps=[0], resolution=SIDE)


@pytest.mark.parametrize(
    ("tap", "why"),
    [
        (f"{BLOCK}/text", "does not output text and image; wan has no /text anywhere"),
        (f"{BLOCK}.attn1/probs", "is not an attention of the image to a text"),
        ("proj_out/modulated", "is not a transformer block with AdaLN"),
    ],
)
def test_readouts_that_it_does_not_have_are_refused(tap: str, why: str, tiny: Path) -> None:
    with pytest.raises(UnknownTap, match=why):
        plan_for(str(tiny / "2.1"), taps=[tap], timesteps=[0], resolution=SIDE)


def test_blocks_are_marked_and_the_conditioning_is_in_the_fingerprint(tiny: Path) -> None:
    taps = {tap.path: tap for tap in list_taps(str(tiny / "2.1"), resolution=SIDE, inner=True)}
    assert "massive" in taps[BLOCK].warnings and taps[f"{BLOCK}.attn2/probs"].channels == LENGTH
    plans = [plan_for(str(tiny / kind), taps=["*"], timesteps=[0]) for kind in KINDS]
    assert [plan.resolution for plan in plans] == [120, 240]
    assert plans[0].fingerprint["conditioning"] == {"text_tokens": LENGTH}


@pytest.mark.parametrize("kind", KINDS)
def test_a_check_reads_every_part_and_estimates_the_memory(kind: str, tiny: Path) -> None:
    report = check_backbone(str(tiny / kind), resolution=SIDE)
    assert report.faults == [] and report.family == "wan"
    assert {part.name for part in report.parts if part.n_parameters} == {"transformer", "vae", "text_encoder"}
    assert report.memory is not None and report.memory.encoding > 0 and report.memory.denoising > 0


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}, "boundary_ratio 0.875"),
        ({"boundary_ratio": 0.9}, "boundary_ratio 0.9"),
    ],
)
def test_two_transformers_are_refused(changes: dict[str, object], named: str, tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny / "2.1", tmp_path / "pipeline")
    shutil.copytree(folder / "transformer", folder / "transformer_2")
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=f"two transformers.*A14B.* {named}"):
        plan_for(str(folder), taps=["*"], timesteps=[0])
    assert any("two transformers" in str(fault) for fault in check_backbone(str(folder)).faults)


def test_pipelines_that_take_images_are_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny / "2.1", tmp_path / "pipeline")
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "WanImageToVideoPipeline"}))
    with pytest.raises(WeightsMismatch, match="a WanImageToVideoPipeline"):
        family_of(locate(str(folder)))


def test_resolutions_without_whole_tokens_or_beyond_the_positions_are_refused(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="multiples of 4"):
        plan_for(str(tiny / "2.1"), taps=["*"], timesteps=[0], resolution=34)
    with pytest.raises(ConfigError, match="resolution 260") as caught:
        plan_for(str(tiny / "2.1"), taps=["*"], timesteps=[0], resolution=260)
    assert "allowed: at most 256" in str(caught.value)


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("transformer", {"_class_name": "WanVACETransformer3DModel"}, f"WanVACE.* {wan._KIND}"),
        ("transformer", {"added_kv_proj_dim": 32, "image_dim": 8}, "image_dim, added_kv_proj_dim"),
        ("transformer", {"patch_size": [1, 4, 4]}, "patch_size"),
        ("transformer", {"out_channels": 8}, "4 latent channels .* 8"),
        ("transformer", {"in_channels": 36, "out_channels": 36}, "36 latent channels.* 4"),
        ("transformer", {"text_dim": 48}, "text encoder .* 32 .* 48"),
        ("vae", {"_class_name": "AutoencoderKL"}, "AutoencoderKL; .* AutoencoderKLWan"),
        ("vae", {"latents_std": [1.0]}, "4 numbers"),
        ("vae", {"scale_factor_spatial": 8}, "scale_factor_spatial is 8"),
        ("vae", {"patch_size": 2}, "in_channels 3"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    part: str, changes: dict[str, object], message: str, tiny: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny / "2.1", tmp_path / "pipeline")
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsMismatch, match=message):
        plan_for(str(folder), taps=["*"], timesteps=[0], resolution=SIDE)
