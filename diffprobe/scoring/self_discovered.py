"""A direction found through the frozen model: the vector at a tap that makes images of one prompt likely under another.

Images that were generated for a prompt with an attribute are denoised under the same prompt without it. The one vector,
added at every place of a tap, that lowers the error most is what the prompt lacks. The model stays frozen. After Li et
al., "Self-Discovering Interpretable Diffusion Latent Directions for Responsible Text-to-Image Generation" (CVPR 2024);
that paper adds its vector to the h-space of a U-Net, the tap `mid_block`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.intervention import Splice
from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.scoring.intervention_network import HeldOut, InterventionNetwork, put_features

CHECKS = 8
"""Timesteps, spread over the window, at which the error of held-out samples is measured."""


@dataclass(frozen=True, kw_only=True)
class VectorSearch:
    """How the vector is optimised."""

    steps: int = 200
    """Steps of Adam."""
    batch_size: int = 16
    """Samples per step."""
    learning_rate: float = 0.03
    """Step size in units of the root mean square of the tap's features; it falls to 0 along a cosine."""
    window: tuple[int, int] = (0, 999)
    """Smallest and largest timestep, both included, from which each step draws one."""
    seed: int = 0
    """Seed of samples and timesteps; the noise follows the plan of the network."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ConfigError(
                f"steps={self.steps}, batch_size={self.batch_size} (at least 1), learning_rate={self.learning_rate:g} "
                "(more than 0)."
            )
        if not 0 <= self.window[0] <= self.window[1]:
            raise ConfigError(f"window={list(self.window)}: the smallest timestep comes first, from 0.")


@dataclass(frozen=True, kw_only=True, eq=False)
class FoundVector:
    """The vector, and what it does for samples that it was not optimised on."""

    vector: Float[Tensor, " d_in"]
    """In the unit of the features, float32 on the CPU."""
    errors: tuple[float, ...]
    """Error of each step."""
    error_without: float
    """Mean error of the held-out samples over the window, without the vector."""
    error_with: float
    """The same with it."""


def self_discovered_vector(
    network: InterventionNetwork,
    samples: HeldOut,
    held_out: HeldOut,
    search: VectorSearch,
    *,
    tap: str,
    pool: str = "mean",
    on_step: Callable[[int], object] = lambda n: None,
) -> FoundVector:
    """Optimise the vector of one tap.

    Args:
        network: the frozen model.
        samples: finished latents of the prompts with the attribute; their inputs are the prompts without it.
        held_out: more of them, for the error with and without the vector.
        tap: module path.
        pool: mean or gridK: with a grid, each part of the map has a vector of its own.
        on_step: called with 1 after each step.

    Raises: ConfigError for no sample, a window beyond the training grid, or a tap or pooling that cannot be put back;
        BadTimestep, NonFinite.
    """
    splice = Splice(pool)
    if not splice.is_pooled:
        raise ConfigError(f"pool={pool}: one vector for the map needs mean or gridK.")
    if not len(samples) or not len(held_out):
        raise ConfigError(
            f"{len(samples)} samples to optimise on and {len(held_out)} held out: both need at least one."
        )
    low, high = search.window
    network.plan.schedule.check([low, high], network.plan.checkpoint.name)
    scale = _scale(network, samples, tap, splice, t=(low + high) // 2)
    vector = nn.Parameter(torch.zeros(scale.width, device=network.device))
    change = put_features(splice, lambda before: before + scale.rms * vector)
    optimiser = torch.optim.Adam([vector], lr=search.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, search.steps)
    generator = torch.Generator().manual_seed(derive_seed("self-discovered", search.seed))
    size, errors = min(search.batch_size, len(samples), network.rows), []
    for step in range(search.steps):
        rows = torch.randperm(len(samples), generator=generator)[:size].tolist()
        t = int(torch.randint(low, high + 1, (), generator=generator))
        loss = network.loss(samples, rows, t, step, {tap: change})
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        errors.append(float(loss.detach()))
        on_step(1)
    checks = sorted({round(low + i * (high - low) / max(1, CHECKS - 1)) for i in range(CHECKS)})
    without, with_ = (
        float(torch.stack([network.errors(held_out, t, changes).mean() for t in checks]).mean())
        for changes in ({}, {tap: change})
    )
    found = (scale.rms * vector).detach().float().cpu()
    return FoundVector(vector=found, errors=tuple(errors), error_without=without, error_with=with_)


@dataclass(frozen=True)
class _Scale:
    width: int
    rms: float


def _scale(network: InterventionNetwork, samples: HeldOut, tap: str, splice: Splice, *, t: int) -> _Scale:
    """Return width and root mean square of the features of a tap, so that the step size does not depend on the unit."""
    found: list[Tensor] = []

    def keep(x: Tensor) -> None:
        found.append(splice.read(x).double().cpu())

    few = HeldOut(samples.latents[: network.rows], samples.keys[: network.rows], samples.inputs[: network.rows])
    network.errors(few, t, {tap: keep})
    features = torch.cat(found)
    return _Scale(features.shape[1], float(features.square().mean().sqrt()))
