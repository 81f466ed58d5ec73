"""Types that autoencoders, training and analysis exchange: settings, codes, the output of a step, collectives."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae.kernels.sparse_step import Top

RATE, RATE_LATENTS = 6e-3, 1024
"""Step size of up to this number of latents, if none is given."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys that every variant has, under `probe.params`."""

    k: int = 32
    """Latents kept per sample."""
    expansion: int = 8
    """Latents as a multiple of d_in; used if n_latents is None. Revelio: 64."""
    n_latents: int | None = None
    """Number of latents; None for expansion * d_in."""
    k_aux: int | None = None
    """Dead latents that reconstruct the residual in AuxK; None for d_in / 2."""
    aux_weight: float = 1 / 32
    """Weight of AuxK in the loss; 0 for none."""
    dead_window: int = 1_000_000
    """Training samples without activity after which a latent is dead; each place, token and draw counts. In a run on
    fewer samples AuxK never acts, and the run issues a warning."""
    row_buffer: int = 0
    """Size of the shuffle buffer in rows (vectors, places, tokens), over all processes; 0 for none."""
    pre_bias: Literal["mean", "geometric_median"] = "mean"
    """Initial pre-bias: the mean of the training set, or the geometric median of `init_samples` of its samples."""
    init_samples: int = 8192
    """Training samples, selected by seed and key, for the geometric median, datapoint_blend and initial thresholds."""
    datapoint_blend: float = 0.0
    """Weight of sample directions in the initial dictionary rows; 0 for random rows, typically 0.8."""
    learning_rate: float | None = None
    """Step size if trainer.learning_rate is None; None for a step size by the number of latents (`rate`)."""
    warmup_steps: int | None = None
    """Steps over which the step size rises; None for the first 5 % of the run."""
    decay: float = 0.2
    """Share of the run, at its end, over which the step size falls to 0; 0 for a constant step size."""
    adam_eps: float = 6.25e-10
    """Adam's epsilon."""
    adam_beta2: float = 0.95
    """Adam's decay of squared gradients. With torch's 0.999 the large gradients of the first steps keep the next
    hundreds of steps small."""
    step: Literal["sparse", "dense"] = "sparse"
    """How a training step decodes the selected latents and computes gradients: by gathers of their rows, or by products
    with all rows. Equal to rounding; dense is for GPUs with tensor cores, under trainer.precision=bf16-mixed."""

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
                raise ConfigError(f"{name} = {getattr(self, name)} {of} is out of range: 0..1.")
        if not 0 <= self.adam_beta2 < 1:
            raise ConfigError(f"adam_beta2 = {self.adam_beta2} {of} is out of range: 0 to below 1.")
        for name in ("learning_rate", "adam_eps"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} = {value} {of} must be positive.")

    def rate(self, n_latents: int) -> float:
        """Return the step size for a number of latents: `learning_rate`, or if it is None the rule.

        RATE up to RATE_LATENTS latents, and beyond it a step size that falls with the square root of their number.
        Source: the square root is that of Gao et al. 2024, "Scaling and evaluating sparse autoencoders", figure 3; the
        value at RATE_LATENTS is measured (docs/benchmarks.md).

        >>> [round(Config().rate(n), 5) for n in (256, 1024, 4096)], Config(learning_rate=1e-3).rate(4096)
        ([0.006, 0.006, 0.003], 0.001)
        """
        if self.learning_rate is not None:
            return self.learning_rate
        return RATE * min(1.0, (RATE_LATENTS / n_latents) ** 0.5)


Reads = Literal["rows", "timesteps", "pairs"]
"""What an autoencoder reads: rows; rows with the timestep of each; rows with a target for each."""


class Code(NamedTuple):
    """The sparse code of a batch of samples."""

    values: Float[Tensor, "batch width"]
    """Activations, largest first. The width is k for TopK, else the largest number of active latents of a sample."""
    indices: Int[Tensor, "batch width"]
    """Latents of the activations. Entries of value 0 are not active and may repeat a latent: sum, do not assign."""


class Selected(NamedTuple):
    """The selected latents of a training batch."""

    top: Top
    """Candidates of each sample, largest first."""
    part: Int[Tensor, "batch width"]
    """Part of the code that a candidate belongs to, -1 if it is not selected. Level i decodes the parts 0..i."""


class StepOutput(NamedTuple):
    """Output of a training step."""

    loss: Float[Tensor, ""]
    """Weighted sum of the reconstruction levels, plus aux_weight * aux and the terms of the variant."""
    reconstruction: Float[Tensor, ""]
    """Squared error over the variance of the training set."""
    aux: Float[Tensor, ""]
    """Share of the residual that the dead latents leave unexplained; 0 without dead latents."""
    code: Code
    """The code."""
    terms: dict[str, Tensor]
    """Further loss terms by name, detached, for logging."""


class Collective(NamedTuple):
    """Reductions over the processes that share a global batch. The defaults are those of a single process."""

    mean: Callable[[Tensor], Tensor] = lambda scalar: scalar
    """Elementwise mean of a tensor over processes, which all have equally many samples."""
    gather: Callable[[Tensor], Tensor] = lambda values: values
    """Concatenation of the vectors of all processes, of equal length, in the order of ranks."""
    size: int = 1
    """Number of processes."""

    @property
    def rank(self) -> int:
        """Rank of this process. Sample i of the global batch is sample i // size of process i % size."""
        return torch.distributed.get_rank() if self.size > 1 else 0


SINGLE_PROCESS = Collective()
