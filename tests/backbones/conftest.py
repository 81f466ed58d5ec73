"""The tiny pipeline as diffusers itself runs it: the reference that the extractor is held against."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.core.rng import noise_for

KEYS = ("a/0", "a/1", "b.2", "b.3", "c")


@pytest.fixture
def images() -> Tensor:
    """Five images with structure: smooth shapes plus a little noise."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(5, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bilinear").clamp(0, 1)


@pytest.fixture
def load(tiny_sd: Path) -> Callable[..., DiffusionFeatures]:
    """Load the tiny pipeline with settings that each test may change."""

    def make(**settings: object) -> DiffusionFeatures:
        chosen = {"taps": ["mid_block"], "timesteps": [100], "device": "cpu", **settings}
        return DiffusionFeatures.from_pretrained(str(tiny_sd), **chosen)  # type: ignore[arg-type]

    return make


@pytest.fixture
def reference(tiny_sd: Path) -> Callable[..., dict[str, Tensor]]:
    """Run the untouched pipeline's parts by hand, with plain forward hooks: tap -> map, for one timestep and draw."""
    from diffusers import DDPMScheduler, StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def run(
        images: Tensor,
        keys: Sequence[str],
        taps: Sequence[str],
        t: int,
        *,
        prompts: Sequence[str] | None = None,
        draw: int = 0,
        seed: int = 0,
    ) -> dict[str, Tensor]:
        clean = pipeline.vae.encode(images * 2 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        noise = torch.stack([noise_for(seed, key, draw, tuple(clean.shape[1:])) for key in keys])
        times = torch.full((len(keys),), t)
        noisy = DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(clean, noise, times)
        texts = list(prompts or [""] * len(keys))
        tokens = pipeline.tokenizer(
            texts, padding="max_length", truncation=True, max_length=24, return_tensors="pt"
        ).input_ids
        found: dict[str, Tensor] = {}

        def hook(tap: str) -> Callable[..., None]:
            return lambda module, args, output: found.__setitem__(
                tap, (output[0] if isinstance(output, tuple) else output).clone()
            )

        handles = [pipeline.unet.get_submodule(tap).register_forward_hook(hook(tap)) for tap in taps]
        pipeline.unet(noisy, times, encoder_hidden_states=pipeline.text_encoder(tokens)[0])
        for handle in handles:
            handle.remove()
        return found

    return run


@pytest.fixture
def hooked() -> Callable[..., dict[str, Tensor]]:
    """Run a whole network with plain forward hooks: tap -> what the module gave, the first of a tuple."""

    @torch.no_grad()
    def run(network: torch.nn.Module, taps: Sequence[str], *given: object, **conditioning: object) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def hook(tap: str) -> Callable[..., None]:
            return lambda module, args, output: found.__setitem__(
                tap, (output[0] if isinstance(output, tuple) else output).clone()
            )

        handles = [network.get_submodule(tap).register_forward_hook(hook(tap)) for tap in taps]
        network(*given, **conditioning)
        for handle in handles:
            handle.remove()
        return found

    return run
