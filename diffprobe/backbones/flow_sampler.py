"""Euler's method for flow models, at the noise levels of a checkpoint's own pipeline.

A pipeline's noise levels s are spaced evenly and then shifted towards noise; most lie between two timesteps t = 1000 s.
Here each is rounded to the nearest one, by at most half a timestep, so that a cell has a whole number and means what it
means for images. The steps go between the rounded levels: nothing but the grid differs from the pipeline.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffprobe.backbones.plan import ReadPlan
from diffprobe.backbones.samplers import scheduler_config
from diffprobe.backbones.taps import trace_spec
from diffprobe.core.errors import ConfigError
from diffprobe.core.foreign import naming

FLOW_SAMPLER = "euler"
"""Name of the sampler of flow models."""
_SOLVERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""Schedulers of flow models that diffusers' pipelines take beside FlowMatch...; their noise levels are used."""
_BY_TOKENS = ("flux", "ltx", "qwen_image", "sd3", "z_image")
"""Families whose pipelines shift by the number of image tokens, where a config asks for it."""
_EVENLY = ("flux", "flux2", "ltx", "lumina2", "qwen_image", "z_image")
"""Families whose pipelines space levels evenly from 1 to 1 / steps; others leave it to the scheduler."""


class FlowSampler:
    """Euler steps along the velocity of a flow model, noise - x, from noise to the sample.

    Source: Liu et al., 2209.03003, equation 1; Euler's method in `FlowMatchEulerDiscreteScheduler` of diffusers.

    Args:
        timesteps: the timesteps that are visited, the noisiest first.
        n_timesteps: the timestep of noise alone.
    """

    def __init__(self, timesteps: Sequence[int], n_timesteps: int) -> None:
        self.timesteps = tuple(timesteps)
        self._levels = [t / n_timesteps for t in timesteps] + [0.0]

    def start(self, noise: Tensor) -> Tensor:
        """Return the latents that sampling starts from, for standard normal noise."""
        return noise

    def model_input(self, step: int, latents: Tensor) -> Tensor:
        """Return what the denoiser gets: the latents as they are."""
        return latents

    def step(self, step: int, predicted: Tensor, latents: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
        """Return the latents after a step.

        Args:
            step: number of the step, in order from 0.
            predicted: the (guided) velocity.
            generators: not used; the steps add no noise.
        """
        return latents + (self._levels[step + 1] - self._levels[step]) * predicted


def flow_grid(plan: ReadPlan, steps: int, *, shift: float | None = None) -> tuple[int, ...]:
    """Return the timesteps that sampling a backbone visits, as `flow_timesteps`. Raises: what that raises."""
    spec = plan.spec
    size = trace_spec(spec, count=False).taps[spec.blocks[0]].size
    return flow_timesteps(
        scheduler_config(plan.checkpoint), steps, shift=shift, n_tokens=math.prod(size), family=spec.family,
        where=plan.checkpoint.name,
    )  # fmt: skip


def flow_timesteps(
    config: Mapping[str, Any], steps: int, *, shift: float | None, n_tokens: int, family: str, where: Path | str
) -> tuple[int, ...]:
    """Return the timesteps that sampling visits, the noisiest first.

    Args:
        config: scheduler config of the checkpoint.
        steps: sampling steps.
        shift: evenly spaced levels s from 1 to 1 / steps become shift s / (1 + (shift - 1) s); None for the levels of
            the checkpoint's pipeline, which may depend on the size of the image.
        n_tokens: image tokens of the transformer.
        family: family of the backbone.
        where: the checkpoint, for messages.
    Raises: ConfigError for more steps than there are timesteps for them, and for a shift by size whose rule is not
        known; WeightsMismatch for a config without such a rule.
    """
    import diffusers

    n = int(config.get("num_train_timesteps", 1000))
    kind = str(config.get("_class_name"))
    evenly = {"sigmas": np.linspace(1.0, 1 / steps, steps)}
    with naming(where, "a scheduler of a flow model"):
        if shift is not None:
            scheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=n, shift=shift)
            scheduler.set_timesteps(**evenly)
        elif kind in _SOLVERS:
            scheduler = getattr(diffusers, kind).from_config(dict(config))
            scheduler.set_timesteps(steps)
        else:
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(dict(config))
            spacing: dict[str, Any] = evenly if family in _EVENLY else {"num_inference_steps": steps}
            if scheduler.config.use_dynamic_shifting:
                spacing = {**spacing, "mu": _mu(scheduler.config, steps, n_tokens, family, where)}
            scheduler.set_timesteps(**spacing)
        found = tuple(round(float(level) * n) for level in scheduler.sigmas[:-1])
    if len(set(found)) < steps or found[-1] < 1:
        raise ConfigError(
            f"sampling.sampler={FLOW_SAMPLER} of '{where}' with {steps} steps visits a timestep twice.",
            f"the last ones: {', '.join(map(str, found[-8:]))}",
            fix="fewer sampling.steps, or a sampling.shift nearer to 1",
        )
    return found


def _mu(config: Mapping[str, Any], steps: int, n_tokens: int, family: str, where: Path | str) -> float:
    """Return the shift, as a logarithm, that depends on the size of the image, by the rule of the family's pipeline.

    That of FLUX.2 depends on the steps as well. For others it is linear in the number of image tokens (Esser et al.,
    2403.03206, section 5.3.2).
    """
    if family == "flux2":
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(n_tokens, steps))
    if family not in _BY_TOKENS:
        raise ConfigError(
            f"'{where}' shifts its noise levels by the size of the image; the rule of family {family} is not known.",
            fix="sampling.shift=3, or another number",
        )
    few, many = config["base_image_seq_len"], config["max_image_seq_len"]
    low, high = config["base_shift"], config["max_shift"]
    return float(low + (n_tokens - few) * (high - low) / (many - few))
