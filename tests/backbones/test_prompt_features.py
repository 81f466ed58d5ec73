"""Prompt latents against diffusers' own pipelines with plain hooks, and what they must not depend on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import hunyuandit, pixart, sd_unet, sdxl
from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.backbones.samplers import SAMPLERS, reread_key, start_key, step_generators
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import noise_for

PROMPTS = ["a red cat", "a photo of the moon", "a red cat", "a photo of the moon"]
NUMBERS = [0, 0, 1, 1]
TAPS = ("down_blocks.0", "mid_block", "up_blocks.1")
MAKERS: dict[str, Callable[[Path], Path]] = {
    "sd": sd_unet.tiny,
    "v": lambda path: sd_unet.tiny(path, prediction="v_prediction"),
    "lcm": lambda path: sd_unet.tiny(path, lcm=True, scheduler="LCMScheduler"),
    "sdxl": sdxl.tiny,
    "pixart": pixart.tiny,
    "hunyuandit": hunyuandit.tiny,
}


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("prompt_features")
    return lambda name: root / name if (root / name).is_dir() else MAKERS[name](root / name)


def config_of(
    folder: Path, sampling: dict[str, Any], backbone: dict[str, Any] | None = None, **features: Any
) -> PromptExtraction:
    return PromptExtraction(
        backbone=BackboneConfig(path=str(folder), device="cpu", **(backbone or {"channels_last": False})),
        prompts="unused.txt",
        features=PromptFeaturesConfig(**{"taps": TAPS, "pool": "none", **features}),
        sampling=SamplingConfig(**{"steps": 4, "seeds": 2, **sampling}),
    )


def assert_equal(found: Tensor, expected: Tensor) -> None:
    """Compare to 1e-5 of the largest value: latents of random networks are far from unit scale."""
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def plain(
    folder: Path, kind: str, sampler: str, taps: Sequence[str], *, scale: float, steps: int = 4, seed: int = 0
) -> tuple[dict[tuple[str, int], Tensor], Tensor]:
    """Run diffusers' pipeline with hooks on modules: the outputs by (tap, number of the step), and the latents."""
    import diffusers

    pipeline = getattr(diffusers, kind).from_pretrained(folder)
    name, settings = SAMPLERS[sampler]
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **settings)
    pipeline.set_progress_bar_config(disable=True)
    network = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
    outputs: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    for tap in taps:
        network.get_submodule(tap).register_forward_hook(
            lambda module, args, output, tap=tap: outputs[tap].append(
                (output if isinstance(output, Tensor) else output[0]).clone()
            )
        )
    n_channels = network.config.in_channels
    side = network.config.sample_size
    noise = torch.stack([noise_for(seed, start_key(k), 0, (n_channels, side, side)) for k in NUMBERS])
    further = {} if kind == "LatentConsistencyModelPipeline" else {"negative_prompt": None}
    if kind.startswith("PixArt"):
        further = {"negative_prompt": "", "clean_caption": False, "use_resolution_binning": False}
    if kind == "HunyuanDiTPipeline":
        further["use_resolution_binning"] = False
    with torch.no_grad():
        latents = pipeline(
            PROMPTS, num_inference_steps=steps, guidance_scale=scale, latents=noise, output_type="latent",
            generator=step_generators(seed, NUMBERS), **further,
        ).images  # fmt: skip
    return {(tap, i): value for tap, values in outputs.items() for i, value in enumerate(values)}, latents


@pytest.mark.slow
@pytest.mark.parametrize("guidance", [0.0, 3.0])
@pytest.mark.parametrize(
    ("name", "kind", "sampler"),
    [
        ("sd", "StableDiffusionPipeline", "ddim"),
        ("sd", "StableDiffusionPipeline", "dpm"),
        ("sd", "StableDiffusionPipeline", "euler"),
        ("v", "StableDiffusionPipeline", "ddim"),
        ("sdxl", "StableDiffusionXLPipeline", "ddim"),
    ],
)
def test_features_and_latents_are_those_of_the_pipeline(
    folder_of: Callable[[str], Path], name: str, kind: str, sampler: str, guidance: float
) -> None:
    folder = folder_of(name)
    expected, latents = plain(folder, kind, sampler, TAPS, scale=1 + guidance)
    model = PromptFeatures.from_config(
        config_of(
            folder,
            {"sampler": sampler, "guidance": guidance},
            timesteps=(999, 499, 249),
            keep=("latents",),
            unconditional=guidance > 0,
        )  # fmt: skip
    )
    found = model(PROMPTS, NUMBERS)
    assert_equal(found["latents@t0:caption:none"], latents)
    for (tap, step), value in expected.items():
        t = model.plan.grid[step]
        if t == 749:
            assert f"{tap}@t749:caption:none" not in found
            continue
        assert_equal(found[f"{tap}@t{t}:caption:none"], value[-4:])
        if guidance:
            assert_equal(found[f"{tap}@t{t}:negative:none"], value[:4])


@pytest.mark.slow
def test_a_latent_consistency_model_gets_its_guidance_as_input(folder_of: Callable[[str], Path]) -> None:
    folder = folder_of("lcm")
    expected, latents = plain(folder, "LatentConsistencyModelPipeline", "lcm", TAPS, scale=8.5)
    settings = {"timesteps": (999, 259), "keep": ("latents",)}
    model = PromptFeatures.from_config(config_of(folder, {"sampler": "lcm"}, **settings))
    assert model.plan.is_distilled and model.plan.guidance == 7.5 and model.plan.grid == (999, 759, 499, 259)
    found = model(PROMPTS, NUMBERS)
    assert_equal(found["latents@t0:caption:none"], latents)
    assert_equal(found["mid_block@t259:caption:none"], expected["mid_block", 3])
    other = PromptFeatures.from_config(config_of(folder, {"sampler": "lcm", "guidance": 1.0}, **settings))
    assert other.plan.fingerprint["conditioning"]["guidance_scale"] == 2.0
    _, latents = plain(folder, "LatentConsistencyModelPipeline", "lcm", TAPS, scale=2.0)
    assert_equal(other(PROMPTS, NUMBERS)["latents@t0:caption:none"], latents)


@pytest.mark.parametrize(
    ("name", "kind", "tap"),
    [("pixart", "PixArtAlphaPipeline", "transformer_blocks.1"), ("hunyuandit", "HunyuanDiTPipeline", "blocks.1")],
)
def test_transformers_are_sampled_by_the_same_path(
    name: str, kind: str, tap: str, folder_of: Callable[[str], Path]
) -> None:
    _, latents = plain(folder_of(name), kind, "ddim", (), scale=4.0)
    config = config_of(folder_of(name), {"guidance": 3.0}, taps=(tap,), timesteps=(999,), keep=("latents",))
    found = PromptFeatures.from_config(config)(PROMPTS, NUMBERS)
    assert_equal(found["latents@t0:caption:none"], latents)


@pytest.fixture(scope="module")
def rich(folder_of: Callable[[str], Path]) -> tuple[PromptFeatures, dict[str, Tensor]]:
    """A model that reads everything at once, and its features."""
    config = config_of(
        folder_of("sd"), {"guidance": 2.0}, timesteps=(999, 499), reread=(20, 300), unconditional=True, pool="grid2",
        keep=("controls", "latents", "images"),
    )  # fmt: skip
    model = PromptFeatures.from_config(config)
    return model, model(PROMPTS, NUMBERS)


def test_widths_sizes_and_names_are_those_of_the_plan(rich: tuple[PromptFeatures, dict[str, Tensor]]) -> None:
    model, found = rich
    assert list(found) == [cell.name for cell in model.plan.cells]
    for cell, width in model.plan.widths.items():
        assert found[cell].shape[1] == width and found[cell].dtype == torch.float32
    assert sum(value[0].numel() for value in found.values()) * 4 == model.plan.sample_bytes
    assert model.plan.passes == 4 * 2 + 2


def test_reread_is_the_ordinary_extraction_of_the_generated_latent(
    rich: tuple[PromptFeatures, dict[str, Tensor]], folder_of: Callable[[str], Path]
) -> None:
    """Equal numbers under equal names: such cells can be compared with those of real images."""
    _, found = rich
    ordinary = DiffusionFeatures.from_pretrained(
        str(folder_of("sd")), taps=list(TAPS), timesteps=[20, 300], pool="grid2", device="cpu", channels_last=False
    )
    expected = ordinary.from_latents(found["latents@t0:caption:none"], keys=[reread_key(k) for k in NUMBERS])
    assert set(expected) == {name for name in found if ":empty:grid2" in name}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)


def test_controls_are_those_of_the_generated_images(
    rich: tuple[PromptFeatures, dict[str, Tensor]], folder_of: Callable[[str], Path]
) -> None:
    import diffusers

    _, found = rich
    images = found["pixels@t0:caption:none"]
    assert images.shape == (4, 3, 32, 32) and 0 <= float(images.min()) <= float(images.max()) <= 1
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folder_of("sd"))
    latents = found["latents@t0:caption:none"] / pipeline.vae.config.scaling_factor
    with torch.no_grad():
        decoded = (pipeline.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(images, decoded, atol=1e-5, rtol=0)
    pixels = DiffusionFeatures.from_pretrained("pixels", taps=["pixels"], timesteps=[0], resolution=32, device="cpu")
    expected = pixels(images, keys=list("abcd"))
    torch.testing.assert_close(found["pixels@t0:empty:mean"], expected["pixels@t0:empty:mean"])
    alone = DiffusionFeatures.from_pretrained(
        str(folder_of("sd")), taps=["latents"], timesteps=[0], part="vae", device="cpu"
    )
    expected = alone.from_latents(found["latents@t0:caption:none"], keys=list("abcd"))
    torch.testing.assert_close(found["latents@t0:empty:mean"], expected["latents@t0:empty:mean"])


def test_samples_do_not_depend_on_their_batch_or_order(rich: tuple[PromptFeatures, dict[str, Tensor]]) -> None:
    model, found = rich
    order = [3, 0, 2]
    other = model([PROMPTS[i] for i in order], [NUMBERS[i] for i in order])
    single = model(PROMPTS[1:2], NUMBERS[1:2])
    for name, value in found.items():
        assert_equal(other[name], value[order])
        assert_equal(single[name], value[1:2])


def test_a_cell_does_not_depend_on_what_else_is_read(
    rich: tuple[PromptFeatures, dict[str, Tensor]], folder_of: Callable[[str], Path]
) -> None:
    """One tap at the first timestep: sampling stops there, and the pass ends at the tap."""
    config = config_of(folder_of("sd"), {"guidance": 2.0}, timesteps=(999,), taps=("mid_block",), pool="grid2")
    model = PromptFeatures.from_config(config)
    assert model.plan.passes == 2
    (value,) = model(PROMPTS, NUMBERS).values()
    torch.testing.assert_close(value, rich[1]["mid_block@t999:caption:grid2"])


@pytest.mark.parametrize("sampler", ["ddim", "lcm"])
def test_prompts_share_their_noise(folder_of: Callable[[str], Path], sampler: str) -> None:
    """In the unconditional branch nothing differs between prompts at the first step, and all between seeds."""
    config = config_of(
        folder_of("sd"), {"sampler": sampler, "guidance": 1.0}, timesteps=(999,), unconditional=True, pool="tokens4"
    )
    found = PromptFeatures.from_config(config)(PROMPTS, NUMBERS)["mid_block@t999:negative:tokens4"]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[3])
    assert not torch.allclose(found[0], found[2], atol=1e-3)


@pytest.mark.slow
def test_seeds_negative_prompts_and_guidance_change_features(folder_of: Callable[[str], Path]) -> None:
    def read(**sampling: Any) -> Tensor:
        config = config_of(folder_of("sd"), sampling, timesteps=(249,), taps=("mid_block",), pool="mean")
        return PromptFeatures.from_config(config)(PROMPTS[:1], [0])["mid_block@t249:caption:mean"]

    values = [
        read(),
        read(seed=1),
        read(guidance=3.0),
        read(guidance=3.0, negative_prompt="a dog"),
        read(sampler="dpm"),
    ]
    for i, one in enumerate(values):
        assert all(not torch.allclose(one, other, atol=1e-5) for other in values[i + 1 :])
    torch.testing.assert_close(values[0], read(guidance=0.0))


def test_prompts_that_are_cut_or_empty_are_named(folder_of: Callable[[str], Path]) -> None:
    model = PromptFeatures.from_config(config_of(folder_of("sd"), {}, timesteps=(999,)))
    long = "a red cat and " * 40
    assert model.check_lengths(["a red cat"], ["x"], allow_truncated=False) == []
    with pytest.raises(ConfigError, match=r"1 of 2 prompts(?s:.*)long: \d+ tokens"):
        model.check_lengths(["a red cat", long], ["short", "long"], allow_truncated=False)
    assert model.check_lengths(["a red cat", long], ["short", "long"], allow_truncated=True) == ["long"]
    with pytest.raises(ConfigError, match="blank"):
        model.check_lengths([" "], ["blank"], allow_truncated=True)


def test_images_are_decoded_only_where_they_were_asked_for(folder_of: Callable[[str], Path]) -> None:
    model = PromptFeatures.from_config(config_of(folder_of("sd"), {}, timesteps=(999,)))
    with pytest.raises(ConfigError, match="decoder"):
        model.decode(torch.zeros(1, *model.plan.spec.latent_shape))


def test_blocks_that_stay_in_files_give_the_same_features(folder_of: Callable[[str], Path]) -> None:
    def read(name: str, tap: str, **backbone: Any) -> dict[str, Tensor]:
        settings = {"timesteps": (999,), "reread": (20,), "keep": ("latents",), "taps": (tap,)}
        model = PromptFeatures.from_config(
            config_of(folder_of(name), {"guidance": 2.0}, {"channels_last": False, **backbone}, **settings)
        )
        return model(PROMPTS, NUMBERS)

    for name, tap in (("sd", "mid_block"), ("pixart", "transformer_blocks.1")):
        whole = read(name, tap)
        for cell, value in read(name, tap, offload="blocks").items():
            assert value.equal(whole[cell]), cell
