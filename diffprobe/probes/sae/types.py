"""What travels between an autoencoder and those that train or read it: settings, codes, the result of a step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae.kernels.sparse_step import Top


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys that every variant has, below `probe.params`."""

    k: int = 32
    """Latents kept a sample."""
    expansion: int = 8
    """Latents as a multiple of d_in; used where n_latents is not given. Revelio: 64."""
    n_latents: int | None = None
    """Number of latents."""
    k_aux: int | None = None
    """Dead latents that explain the residual in AuxK; None for d_in / 2."""
    aux_weight: float = 1 / 32
    """Weight of AuxK in the loss; 0 switches it off."""
    dead_window: int = 1_000_000
    """A latent is dead when it was not active for this many training samples; places, tokens and draws count each. In a
    run on fewer AuxK never acts, and the run warns of it."""
    row_buffer: int = 0
    """Rows (vectors, places, tokens) that all processes hold back to mix those of several batches; 0 for none."""
    pre_bias: Literal["mean", "geometric_median"] = "mean"
    """Where the pre-bias starts: at the mean of the training set, or the geometric median of `init_samples` of it."""
    init_samples: int = 8192
    """Training samples, chosen by seed and key, for what can't be summed up: the median, datapoints, thresholds."""
    datapoint_blend: float = 0.0
    """Share of a sample's direction in the initial rows; the rest is random. 0 for random rows, 0.8 is usual."""
    learning_rate: float = 1e-3
    """Step size where trainer.learning_rate is not given."""
    warmup_steps: int | None = None
    """Steps over which the step size rises; None for the first 5 % of the run."""
    decay: float = 0.2
    """Last part of the run, as a fraction, in which the step size falls to 0; 0 keeps it constant."""
    adam_eps: float = 6.25e-10
    """Adam's epsilon."""

    def __post_init__(self) -> None:
        of = f"of probe '{type(self).__module__.rpartition('.')[2]}'"
        for name in ("k", "expansion", "dead_window", "init_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)} {of} must be at least 1.")
        for name in ("n_latents", "k_aux", "warmup_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} = {value} {of} must be at least 1.")
        if self.row_buffer < 0:
            raise ConfigError(f"row_buffer = {self.row_buffer} {of} must not be negative.")
        if self.aux_weight < 0:
            raise ConfigError(f"aux_weight = {self.aux_weight} {of} must not be negative.")
        for name in ("datapoint_blend", "decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)} {of} must lie in 0..1.")
        for name in ("learning_rate", "adam_eps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)} {of} must be more than 0.")


class Code(NamedTuple):
    """The sparse code of some samples: the pair that everything downstream works on."""

    values: Float[Tensor, "batch width"]
    """Activations, largest first. Width is k for TopK, and the fullest sample's number of latents elsewhere."""
    indices: Int[Tensor, "batch width"]
    """Their latents. An entry whose value is 0 is not active, and its latent may stand twice: add, never overwrite."""


class Selected(NamedTuple):
    """What a variant selects in a training batch."""

    top: Top
    """Candidates of each sample."""
    part: Int[Tensor, "batch width"]
    """The part of the code that a candidate belongs to; -1 if it is not selected. Level i decodes parts 0..i."""


class StepOutput(NamedTuple):
    """What one training step gives."""

    loss: Float[Tensor, ""]
    """Weighted levels of the reconstruction + aux_weight * aux + what the variant adds."""
    reconstruction: Float[Tensor, ""]
    """Squared error over the variance of the training set."""
    aux: Float[Tensor, ""]
    """Share of the residual that the dead latents leave; 0 without dead latents."""
    code: Code
    """The code."""
    terms: dict[str, Tensor]
    """Further parts of the loss by name, detached, for the log."""


class Collective(NamedTuple):
    """What a batch spread over several processes needs; as given, for one process."""

    mean: Callable[[Tensor], Tensor] = lambda scalar: scalar
    """Mean of a tensor over processes, element by element; all of them have as many samples."""
    gather: Callable[[Tensor], Tensor] = lambda values: values
    """Vectors of equal length of all processes behind each other, in the order of their ranks."""
    size: int = 1
    """Number of processes."""

    @property
    def rank(self) -> int:
        """Which of them this one is. Sample i of the global batch is sample i // size of process i % size."""
        return torch.distributed.get_rank() if self.size > 1 else 0


SINGLE_PROCESS = Collective()
