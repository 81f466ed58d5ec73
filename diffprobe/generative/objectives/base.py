"""The contract of a training objective, the forward process that it is defined on, and the reading of its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.config.parse import parse, to_tree
from diffprobe.core.registry import OBJECTIVES

PredictionType = Literal["epsilon", "sample", "v_prediction", "flow_prediction"]
"""What a network can predict, by diffusers' names; an exported scheduler records it."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Which objective a denoiser is trained with (the `objective` block of an experiment file)."""

    name: str = "noise_prediction"
    """File of `generative/objectives/`."""
    params: dict[str, Any] = field(default_factory=dict)
    """Its settings, keys of the `Config` of that file; unset keys have the defaults of the file."""


class ForwardProcess(nn.Module):
    """The forward process: x_t = signal[t] * x_0 + sigma[t] * noise.

    A module, so that its tables follow the network to a device; they are not part of a checkpoint.

    Args:
        alphas_cumprod: cumulative product of 1 - beta, by timestep; larger timesteps are noisier.
    """

    signal: Tensor
    sigma: Tensor

    def __init__(self, alphas_cumprod: Float[Tensor, " timestep"]) -> None:
        super().__init__()
        self._set_tables(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())

    def _set_tables(self, signal: Float[Tensor, " timestep"], sigma: Float[Tensor, " timestep"]) -> None:
        self.register_buffer("signal", signal, persistent=False)
        self.register_buffer("sigma", sigma, persistent=False)

    @property
    def n_timesteps(self) -> int:
        """Timesteps of the training grid."""
        return len(self.signal)

    def snr(self, timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the signal-to-noise ratio (signal / sigma) ** 2 of each sample."""
        return (self.signal / self.sigma).square()[timesteps]

    def add_noise(
        self, clean: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], timesteps: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch c h w"]:
        """Return the noised latents x_t of each sample at its timestep."""
        signal, sigma = (values[timesteps, None, None, None] for values in (self.signal, self.sigma))
        return signal * clean + sigma * noise

    def draw(self, n: int, generator: torch.Generator) -> Int[Tensor, " n"]:
        """Draw the timesteps of n training samples on the CPU: all of the grid with equal probability."""
        return torch.randint(self.n_timesteps, (n,), generator=generator)


class DeclaredProcess(ForwardProcess):
    """A forward process that an objective brings along, in place of the one that follows from the betas of `noise`.

    Args:
        signal: factor of the clean latents by timestep.
        sigma: factor of the noise by timestep.
    """

    def __init__(self, signal: Float[Tensor, " timestep"], sigma: Float[Tensor, " timestep"]) -> None:
        nn.Module.__init__(self)
        self._set_tables(signal, sigma)

    def scheduler(self) -> Any:
        """Build the scheduler of diffusers that is saved with the trained model."""
        raise NotImplementedError


@runtime_checkable
class Objective(Protocol):
    """What the denoiser learns: the target of its prediction, and the weight of each sample's error.

    The training loss of a batch is the mean over samples of ``weighted(error, timesteps)``, where the error of a sample
    is the mean squared difference between prediction and target.
    """

    prediction_type: PredictionType
    """What the network predicts; the exported scheduler records it, so that samplers read the output correctly."""

    def target(
        self, clean: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], timesteps: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch c h w"]:
        """Return what the network should predict from the noised latents.

        Args:
            clean: scaled vae_latents.
            noise: the standard normal noise that was added.
            timesteps: on the training grid.
        """

    def weighted(self, errors: Float[Tensor, " batch"], timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the error of each sample times the weight of its timestep."""


def complete(config: ObjectiveConfig) -> ObjectiveConfig:
    """Validate the settings of an objective and fill in its defaults, so that a record names every one of them.

    Raises: UnknownName for an objective that does not exist, ConfigError for settings that its file refuses.
    """
    params = parse(OBJECTIVES.load(config.name).Config, config.params, at="objective.params")
    tree: Mapping[str, Any] = to_tree(params)
    return replace(config, params=dict(tree))


def make_objective(config: ObjectiveConfig, process: ForwardProcess) -> Objective:
    """Build the objective that a configuration names. Raises: UnknownName, ConfigError."""
    module = OBJECTIVES.load(config.name)
    objective: Objective = module.make(parse(module.Config, config.params, at="objective.params"), process)
    return objective


def declared_process(config: ObjectiveConfig) -> DeclaredProcess | None:
    """Return the forward process that an objective declares; None for an objective on the betas of `noise`.

    Raises: UnknownName, ConfigError.
    """
    module = OBJECTIVES.load(config.name)
    if not hasattr(module, "make_process"):
        return None
    process: DeclaredProcess = module.make_process(parse(module.Config, config.params, at="objective.params"))
    return process


def compute_loss(
    objective: Objective, errors: Float[Tensor, " batch"], timesteps: Int[Tensor, " batch"]
) -> Float[Tensor, ""]:
    """Return the training loss of a batch: the mean of the weighted errors."""
    return objective.weighted(errors, timesteps).mean()


def mean_squared_error(
    prediction: Float[Tensor, "batch c h w"], target: Float[Tensor, "batch c h w"]
) -> Float[Tensor, " batch"]:
    """Return the mean squared error of each sample, in float32."""
    return (prediction.float() - target).square().flatten(1).mean(1)
