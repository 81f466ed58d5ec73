"""Sampling of flow models: noise levels, Euler steps and guidance. Against pipelines: check_sampling in contract.py."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.backbones.families import flux, sd3
from diffprobe.backbones.flow_sampler import FlowSampler, flow_timesteps
from diffprobe.backbones.prompt_features import PromptFeatures
from diffprobe.backbones.samplers import reread_key
from diffprobe.config.prompt_schema import PromptExtraction, PromptFeaturesConfig, SamplingConfig
from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import ConfigError, WeightsMismatch

PROMPTS = ["a red cat", "a photo of the moon", "a red cat", "a photo of the moon"]
NUMBERS = [0, 0, 1, 1]
BLOCK = "transformer_blocks.1"


def grid(
    config: dict[str, Any], steps: int = 4, *, shift: float | None = None, family: str = "sd3", n_tokens: int = 64
):
    return flow_timesteps(config, steps, shift=shift, n_tokens=n_tokens, family=family, where="toy")


def scheduler(**settings: Any) -> dict[str, Any]:
    made = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    return {**made.config, "_class_name": "FlowMatchEulerDiscreteScheduler"}


def test_levels_are_shifted_towards_noise() -> None:
    assert grid(scheduler(), shift=1.0) == (1000, 750, 500, 250)
    assert grid(scheduler(), shift=3.0) == (1000, 900, 750, 500)
    assert grid(scheduler(shift=3.0), family="lumina2") == (1000, 900, 750, 500)
    assert grid({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, "flow_shift": 3.0})[1] == 900


def test_a_shift_by_size_grows_with_the_image() -> None:
    """FLUX.1: 256 tokens are shifted by exp(.5), 4096 by exp(1.15); FLUX.2 has a rule of its own."""
    config = scheduler(use_dynamic_shifting=True)
    assert grid(config, family="flux", n_tokens=256) == grid(config, shift=2.718281828**0.5)
    assert grid(config, family="flux", n_tokens=4096) == grid(config, shift=2.718281828**1.15)
    assert grid(config, family="flux2", n_tokens=4096)[1] > grid(config, family="flux", n_tokens=4096)[1]
    with pytest.raises(ConfigError, match=r"family hidream is not known(?s:.*)sampling.shift"):
        grid(config, family="hidream")


def test_steps_that_meet_and_configs_of_no_scheduler_are_refused() -> None:
    with pytest.raises(ConfigError, match="twice"):
        grid(scheduler(), 2000, shift=1.0)
    with pytest.raises(ConfigError, match="twice"):
        grid(scheduler(), 20, shift=1e6)
    with pytest.raises(WeightsMismatch, match="scheduler of a flow model"):
        grid({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": "large"}, family="flux")


def test_a_perfect_velocity_ends_at_the_clean_latents() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    sampler = FlowSampler((1000, 740, 31), 1000)
    latents = sampler.start(noise)
    for step, t in enumerate(sampler.timesteps):
        x_t = sampler.model_input(step, latents)
        torch.testing.assert_close(x_t, (1 - t / 1000) * clean + t / 1000 * noise, atol=1e-5, rtol=0)
        latents = sampler.step(step, noise - clean, latents, [])
    torch.testing.assert_close(latents, clean, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("flow")
    return {"sd3": sd3.tiny(root / "sd3"), "flux": flux.tiny(root / "flux")}


def read(folder: Path, sampling: dict[str, Any], **features: Any) -> PromptFeatures:
    chosen = {"taps": (BLOCK,), "timesteps": (1000,), "resolution": 32, "pool": "grid2", **features}
    return PromptFeatures.from_config(
        PromptExtraction(
            backbone=BackboneConfig(path=str(folder), device="cpu"),
            prompts="unused.txt",
            features=PromptFeaturesConfig(**chosen),
            sampling=SamplingConfig(**{"steps": 4, "seeds": 2, **sampling}),
        )
    )


def test_a_flow_model_has_all_that_models_of_noise_have(tiny: dict[str, Path]) -> None:
    """Branches, the generated latent read again, controls, images; no dependence on batch and order."""
    model = read(
        tiny["sd3"], {"guidance": 2.0, "shift": 2.0}, timesteps=(1000, 667), reread=(20, 500), unconditional=True,
        keep=("controls", "latents", "images"),
    )  # fmt: skip
    assert model.plan.sampler == "euler" and model.plan.grid == (1000, 857, 667, 400) and model.plan.passes == 10
    found = model(PROMPTS, NUMBERS)
    assert list(found) == [cell.name for cell in model.plan.cells]
    assert f"{BLOCK}@t667:negative:grid2" in found and found["pixels@t0:caption:none"].shape == (4, 3, 32, 32)
    first = found[f"{BLOCK}@t1000:negative:grid2"]
    torch.testing.assert_close(first[0], first[1])
    assert not torch.allclose(first[0], first[2], atol=1e-3)
    other = model([PROMPTS[3]], [NUMBERS[3]])
    for name, value in other.items():
        torch.testing.assert_close(value[0], found[name][3], atol=1e-4, rtol=1e-4)
    ordinary = DiffusionFeatures.from_pretrained(
        str(tiny["sd3"]), taps=[BLOCK], timesteps=[20, 500], pool="grid2", device="cpu", resolution=32
    )
    latents = found["latents@t0:caption:none"]
    for name, value in ordinary.from_latents(latents, keys=[reread_key(k) for k in NUMBERS]).items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-5)


def test_distilled_guidance_is_an_input_of_the_network(tiny: dict[str, Path]) -> None:
    def latents(**sampling: Any) -> torch.Tensor:
        model = read(tiny["flux"], sampling, keep=("latents",))
        assert model.plan.is_distilled and not model.plan.is_guided and model.plan.passes == 4
        return model(PROMPTS[:1], [0])["latents@t0:caption:none"]

    torch.testing.assert_close(latents(), latents(guidance=2.5))  # a scale of 3.5 is the pipeline's default
    assert not torch.allclose(latents(), latents(guidance=0.0), atol=1e-4)
    fingerprint = read(tiny["flux"], {"guidance": 4.0}).plan.fingerprint
    assert fingerprint["conditioning"]["guidance"] == 5.0
    with pytest.raises(ConfigError, match="distilled into one pass"):
        read(tiny["flux"], {"guidance": 1.0}, unconditional=True)
