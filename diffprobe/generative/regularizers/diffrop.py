"""DiffROP, in its spirit: reverse kernels of different classes are pushed apart until a margin.

Published (2402.10821, abstract): a contrastive term on the Kullback-Leibler divergence between the reverse kernels of
classes, with weights by timestep and a margin. The weight, the margin, the weights by timestep and how the other class
is drawn are not verified against the paper and have no public code; each is a setting here, and its default is ours.
The term is

    weight * mean over samples of g(t) * max(0, margin - KL(p(x_{t-1} | x_t, c) || p(x_{t-1} | x_t, c')))

with c the class of the sample and c' another class of the training split, so a batch may hold one class only. Equal
kernels have no gradient: the term widens a difference, it does not make one.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.generative.objectives.base import ForwardProcess
from diffprobe.generative.regularizers.base import (
    ClassBatch,
    ClassDistribution,
    Predict,
    Regularizer,
    ReverseKernels,
    TrainingClasses,
    draw_classes,
    require_range,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of `regularizer=diffrop`, below `regularizer.params`."""

    weight: float = 0.1
    """Weight of the term. Published as a hyperparameter; the value is ours."""
    margin: float = 0.1
    """Divergence in nats, summed over the latent, beyond which a pair is left alone. The hinge is published as
    "margin"; its sign and its value are ours."""
    timestep_weight: Literal["constant", "signal", "noise"] = "constant"
    """g(t): 1, the signal share abar_t, or the noise share 1 - abar_t. That a weight exists is published; these forms
    are ours."""
    other_class: ClassDistribution = "uniform"
    """How the other class is drawn among the classes but the sample's own. Ours."""
    detach_other: bool = False
    """Move the kernel of the sample's own class only. Ours."""

    def __post_init__(self) -> None:
        require_range("regularizer.params.weight", self.weight, zero=False)
        require_range("regularizer.params.margin", self.margin, zero=False)


class DiffROP(Regularizer):
    """The hinge on the divergence of reverse kernels; one further pass per sample."""

    extra_passes = 1

    def __init__(
        self, config: Config, process: ForwardProcess, kernels: ReverseKernels, classes: TrainingClasses
    ) -> None:
        self._config, self._kernels = config, kernels
        self._probabilities = classes.probabilities(config.other_class)
        signal = process.signal.square().cpu()
        shapes = {"constant": torch.ones_like(signal), "signal": signal, "noise": 1 - signal}
        self._timestep_weights = shapes[config.timestep_weight]

    def term(self, batch: ClassBatch, predict: Predict, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the weighted hinge, see the head of the file; 0 for a batch without classes."""
        own = batch.with_class()
        if len(own) == 0:
            return batch.prediction.sum() * 0
        others = draw_classes(self._probabilities, len(own), generator, but=own.classes.tolist())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self._config.detach_other):
            other = predict(own.noised, own.timesteps, others.to(own.classes))
        divergence = self._kernels.divergence(own.prediction, other, own.timesteps)
        weights = self._timestep_weights.to(divergence.device)[own.timesteps]
        return self._config.weight * (weights * (self._config.margin - divergence).clamp(min=0)).mean()


def make(config: Config, process: ForwardProcess, kernels: ReverseKernels, classes: TrainingClasses) -> DiffROP:
    """Build the term for a process and the classes of a training split."""
    return DiffROP(config, process, kernels, classes)
