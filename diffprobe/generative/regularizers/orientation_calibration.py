"""Oriented calibration (Zhang et al., ICLR 2024), in its spirit: tail images are denoised to images of head classes.

For a noised image x_t = s x_0 + n e, each image x_0' of the batch is a possible origin, with a probability proportional
to exp(-|x_t / s - x_0'|^2 / (2 (n / s)^2)). One is drawn, and where the direction allows it, it replaces the origin in
the target; x_t stays as it is. The weights and the rule of direction were read in public code that builds on the
paper's release, not in the release itself. Ours: no gate by timestep unless `last_timestep` is set, and samples with
the empty caption take part as their classes say nothing (they may be replaced by any image and replace any).

No further pass of the network. In a batch of one class, origins are exchanged within the class; in a batch of one
sample, nothing is.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import NO_CLASS, Regularizer, ReverseKernels, TrainingClasses


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of `regularizer=orientation_calibration`, below `regularizer.params`."""

    direction: Literal["tail_to_head", "head_to_tail", "both"] = "tail_to_head"
    """Which replacements are kept: of an image by one whose class has at least as many images (the paper's "T2H"), by
    one whose class has at most as many, or all."""
    last_timestep: int | None = None
    """Replace at timesteps below this one only; None replaces at all."""

    def __post_init__(self) -> None:
        if self.last_timestep is not None and self.last_timestep < 1:
            raise ConfigError(
                f"regularizer.params.last_timestep={self.last_timestep} is out of range: at least 1.",
                fix="regularizer=null to replace nothing",
            )


def origin_weights(
    process: ForwardProcess,
    clean: Float[Tensor, "batch c h w"],
    noised: Float[Tensor, "batch c h w"],
    timesteps: Int[Tensor, " batch"],
) -> Float[Tensor, "batch origin"]:
    """Return the probability of each image of the batch to be the origin of each noised latent, float64."""
    signal, sigma = (values.double()[timesteps] for values in (process.signal, process.sigma))
    scaled = noised.double().flatten(1) / signal[:, None]
    distances = (scaled[:, None] - clean.double().flatten(1)).square().sum(-1)
    return (-distances / (2 * (sigma / signal).square()[:, None])).softmax(-1)


class OrientationCalibration(Regularizer):
    """Replaces origins in the target; adds no term and no pass."""

    def __init__(self, config: Config, process: ForwardProcess, classes: TrainingClasses) -> None:
        self._config, self._process = config, process
        self._counts = torch.tensor(classes.counts)

    def retarget(
        self,
        clean: Float[Tensor, "batch c h w"],
        noise: Float[Tensor, "batch c h w"],
        timesteps: Int[Tensor, " batch"],
        classes: Int[Tensor, " batch"],
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "batch c h w"], Float[Tensor, "batch c h w"]]:
        """Return the origins that are denoised to, and the noise that leads from them to the same noised latents."""
        process, rows = self._process, torch.arange(len(clean), device=clean.device)
        noised = process.add_noise(clean, noise, timesteps)
        weights = origin_weights(process, clean, noised, timesteps)
        drawn = torch.multinomial(weights.cpu(), 1, generator=generator).squeeze(1).to(clean.device)
        counts = self._counts.to(clean.device)
        own, new = counts[classes.clamp(min=0)], counts[classes[drawn].clamp(min=0)]
        allowed = {"tail_to_head": new >= own, "head_to_tail": new <= own, "both": torch.ones_like(own).bool()}
        kept = allowed[self._config.direction] | (classes == NO_CLASS) | (classes[drawn] == NO_CLASS)
        if self._config.last_timestep is not None:
            kept &= timesteps < self._config.last_timestep
        chosen = torch.where(kept, drawn, rows)
        origins = clean[chosen]
        signal, sigma = (values[timesteps, None, None, None] for values in (process.signal, process.sigma))
        replaced = (chosen != rows)[:, None, None, None]
        return origins, torch.where(replaced, (noised - signal * origins) / sigma, noise)


def make(
    config: Config, process: ForwardProcess, kernels: ReverseKernels, classes: TrainingClasses
) -> OrientationCalibration:
    """Build the replacement for a process and the classes of a training split."""
    return OrientationCalibration(config, process, classes)
