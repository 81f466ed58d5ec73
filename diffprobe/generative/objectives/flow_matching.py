"""Flow matching on straight paths (rectified flow): the network predicts the velocity noise - x_0.

The forward process is x_t = (1 - s) x_0 + s noise with s = t / 1000. All timesteps are weighted alike; which of them
are trained most is decided by the density that they are drawn from.

Sources: Lipman et al., 2210.02747, section 4.1 (optimal-transport paths, with time in the other direction); Liu et al.,
2209.03003, equation 1; Esser et al. (Stable Diffusion 3), 2403.03206, sections 3.1 (densities) and 5.3.2 (shift).
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.generative.objectives.base import DeclaredProcess, ForwardProcess, PredictionType

N_TIMESTEPS = 1000
"""Timestep of pure noise. The grid is 0..1000, as the flow models of diffusers take it; 0 is clean and not trained."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of `objective=flow_matching`, below `objective.params`."""

    density: Literal["logit_normal", "uniform"] = "logit_normal"
    """Density of the noise level s in 0..1 in training: that of sigmoid(z) for a normal z, or uniform."""
    mean: float = 0.0
    """Mean of z; positive values train noisier images more."""
    std: float = 1.0
    """Standard deviation of z."""
    shift: float = 1.0
    """Shift of noise levels: s becomes shift * s / (1 + (shift - 1) * s), in training and in the saved sampler. SD3: 3
    at 1024 pixels; 1 leaves them as they are."""

    def __post_init__(self) -> None:
        for name in ("std", "shift"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"{name}={value} is out of range: more than 0, finite.")
        if not abs(self.mean) < float("inf"):
            raise ConfigError(f"mean={self.mean} is not a finite number.")
        if self.density == "uniform":
            for name, default in (("mean", 0.0), ("std", 1.0)):
                if getattr(self, name) != default:
                    raise ConfigError(
                        f"{name}={getattr(self, name)} has no effect with density=uniform.",
                        fix=f"density=logit_normal, or leave {name} at {default:g}",
                    )


class FlowProcess(DeclaredProcess):
    """The straight path from clean latents (t = 0) to noise (t = 1000)."""

    def __init__(self, config: Config) -> None:
        s = torch.arange(N_TIMESTEPS + 1, dtype=torch.float64) / N_TIMESTEPS
        super().__init__((1 - s).float(), s.float())
        self._config = config

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Draw n timesteps in 1..1000 on the CPU; t stands for the noise levels in ((t - 1) / 1000, t / 1000]."""
        levels = self.draw_levels(n, generator)
        return (levels * N_TIMESTEPS).ceil().long().clamp(1, N_TIMESTEPS)

    def draw_levels(self, n: int, generator: torch.Generator) -> Float[Tensor, " n"]:
        """Draw n noise levels in 0..1 from the density, shifted, in float64 on the CPU."""
        config = self._config
        if config.density == "uniform":
            levels = torch.rand(n, generator=generator, dtype=torch.float64)
        else:
            z = torch.randn(n, generator=generator, dtype=torch.float64)
            levels = torch.sigmoid(config.mean + config.std * z)
        return config.shift * levels / (1 + (config.shift - 1) * levels)

    def scheduler(self) -> Any:
        """Build diffusers' FlowMatchEulerDiscreteScheduler with the shift of the training."""
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=N_TIMESTEPS, shift=self._config.shift)


class FlowMatching:
    """Predicts the velocity of the path; errors are not weighted."""

    prediction_type: PredictionType = "flow_prediction"

    def target(
        self, clean: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], timesteps: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch c h w"]:
        """Return noise - clean, the same at all timesteps."""
        return noise - clean

    def weighted(self, errors: Float[Tensor, " batch"], timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the errors as they are."""
        return errors


def make_process(config: Config) -> FlowProcess:
    """Build the forward process."""
    return FlowProcess(config)


def make(config: Config, process: ForwardProcess) -> FlowMatching:
    """Build the objective."""
    return FlowMatching()
