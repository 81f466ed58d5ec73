"""Capacity manipulation, in its spirit: a low-rank part of the weights is reserved for what the rare classes need.

Published ("Improving Diffusion Models for Class-imbalanced Training Data via Capacity Manipulation", ICLR 2026,
abstract and a public summary): the weights are split into a general part and a part of low rank for rare classes, and
a consistency and a diversity loss move what is known of rare classes to the latter; after training both are one weight,
so that inference costs nothing more. The losses themselves, their weights and the rank were not read, and the announced
code is not public; their form here is ours. With d_i the mean squared difference of the predicted noises of sample i
with all weights and with the general ones, and r the images of its class by those of the most frequent class, the term
is

    weight * mean over samples of [ r d_i + (1 - r) max(0, margin - d_i) ]

so that frequent classes need no reserved weights and rare ones use them. At the start both predictions are equal, and
the denoising error moves the reserved weights.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.generative.low_rank_reserve import reserve, without
from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import (
    ClassBatch,
    Predict,
    Regularizer,
    ReverseKernels,
    TrainingClasses,
    require_range,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of `regularizer=capacity`, below `regularizer.params`. All values are ours."""

    weight: float = 0.1
    """Weight of the term."""
    margin: float = 0.1
    """Mean squared difference of predicted noises beyond which a rare class is left alone."""
    rank: int = 4
    """Rank of the reserved part of each weight."""

    def __post_init__(self) -> None:
        require_range("regularizer.params.weight", self.weight, zero=False)
        require_range("regularizer.params.margin", self.margin, zero=False)
        if self.rank < 1:
            raise ConfigError(f"regularizer.params.rank={self.rank} is out of range: at least 1.")


class CapacityManipulation(Regularizer):
    """Consistency of frequent and diversity of rare classes between all and general weights; one further pass."""

    extra_passes = 1

    def __init__(self, config: Config, kernels: ReverseKernels, classes: TrainingClasses) -> None:
        self._config, self._kernels = config, kernels
        counts = torch.tensor(classes.counts, dtype=torch.float32)
        self._frequency = counts / counts.max()

    def change_network(self, network: nn.Module, seed: int) -> None:
        """Reserve a part of every weight."""
        self._networks = (network,)  # in a tuple, so that it does not become a part of another module
        reserve(network, rank=self._config.rank, seed=seed)

    def contrast(self, own: ClassBatch, predict: Predict, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the weighted sum, see the head of the file. Raises: ConfigError before `change_network`."""
        if not hasattr(self, "_networks"):
            raise ConfigError("regularizer=capacity has no network with reserved weights.", fix="change_network first")
        with without(self._networks[0]):
            general = predict(own.noised, own.timesteps, own.classes)
        distance = self._kernels.noise_distance(own.prediction, general, own.timesteps)
        r = self._frequency.to(distance.device)[own.classes]
        each = r * distance + (1 - r) * (self._config.margin - distance).clamp(min=0)
        return self._config.weight * each.mean()


def make(
    config: Config, process: ForwardProcess, kernels: ReverseKernels, classes: TrainingClasses
) -> CapacityManipulation:
    """Build the term for the classes of a training split."""
    return CapacityManipulation(config, kernels, classes)
