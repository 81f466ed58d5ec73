"""The tiny pipelines as diffusers itself runs them: what the families are held against."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffprobe.core.rng import noise_for


@pytest.fixture
def plain_hooks() -> Callable[..., dict[str, Any]]:
    """Run an untouched network and return what plain forward hooks saw: tap -> output as it is."""

    @torch.no_grad()
    def run(network: nn.Module, taps: Sequence[str], *args: object, **kwargs: object) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def hook(tap: str) -> Callable[..., None]:
            return lambda module, inputs, output: found.__setitem__(tap, output)

        handles = [network.get_submodule(tap).register_forward_hook(hook(tap)) for tap in taps]
        network(*args, **kwargs)
        for handle in handles:
            handle.remove()
        return found

    return run


@pytest.fixture
def noisy_latents() -> Callable[..., Tensor]:
    """Encode images with a pipeline's own VAE and noise them by its own forward process, at one timestep."""
    from diffusers import DDPMScheduler

    @torch.no_grad()
    def make(pipeline: Any, images: Tensor, keys: Sequence[str], t: int) -> Tensor:
        config = pipeline.vae.config
        clean = pipeline.vae.encode(images * 2 - 1).latent_dist.mode()
        clean = (clean - (config.shift_factor or 0.0)) * config.scaling_factor
        noise = torch.stack([noise_for(0, key, 0, tuple(clean.shape[1:])) for key in keys])
        if type(pipeline.scheduler).__name__.startswith("FlowMatch"):
            return (1 - t / 1000) * clean + t / 1000 * noise
        times = torch.full((len(keys),), t)
        return DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(clean, noise, times)

    return make


@pytest.fixture
def as_map() -> Callable[[Tensor], Tensor]:
    """Lay the tokens of a square image on their grid."""

    def lay(tokens: Tensor) -> Tensor:
        side = round(tokens.shape[1] ** 0.5)
        return tokens.permute(0, 2, 1).reshape(len(tokens), tokens.shape[2], side, side)

    return lay
