"""Class-balancing diffusion models (Qin et al., 2305.00562): the prediction under a class that is drawn in balance.

The term is, with c' drawn from a target distribution of classes and sg() cutting the gradient,

    tau * mean over samples of t / T * (|eps(c) - sg(eps(c'))|^2 + gamma * |sg(eps(c)) - eps(c')|^2)

with squared differences averaged over the latent. This form, t / T, tau = 1 and gamma = 1/4 are those of a public fork
of the paper's code, which draws c' by the frequency of classes unless it fine-tunes. Two details are ours: samples with
the empty caption are left out one by one (there: by batch), and the differences are those of predicted noises for any
kind of prediction. c' may be c, which adds nothing. It is drawn from the classes of the training split, so a batch may
hold one class only.
"""

from dataclasses import dataclass

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
    """Keys of `regularizer=cbdm`, below `regularizer.params`."""

    tau: float = 1.0
    """Weight of the term; the default of that code, whose differences are averaged over the image too."""
    gamma: float = 0.25
    """Weight of the commitment term, relative to the first; 1/4 in that code."""
    target: ClassDistribution = "uniform"
    """Distribution of the drawn class. Uniform draws tail classes as often as others."""

    def __post_init__(self) -> None:
        require_range("regularizer.params.tau", self.tau, zero=False)
        require_range("regularizer.params.gamma", self.gamma, zero=True)


class ClassBalancing(Regularizer):
    """The distribution adjustment and its commitment term; one further pass per sample."""

    extra_passes = 1

    def __init__(self, config: Config, kernels: ReverseKernels, classes: TrainingClasses) -> None:
        self._config, self._kernels = config, kernels
        self._probabilities = classes.probabilities(config.target)

    def contrast(self, own: ClassBatch, predict: Predict, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the weighted term, see the head of the file."""
        drawn = draw_classes(self._probabilities, len(own), generator)
        other = predict(own.noised, own.timesteps, drawn.to(own.classes))
        adjusted = self._kernels.noise_distance(own.prediction, other.detach(), own.timesteps)
        committed = self._kernels.noise_distance(own.prediction.detach(), other, own.timesteps)
        share = own.timesteps / self._kernels.n_timesteps
        return self._config.tau * (share * (adjusted + self._config.gamma * committed)).mean()


def make(config: Config, process: ForwardProcess, kernels: ReverseKernels, classes: TrainingClasses) -> ClassBalancing:
    """Build the term for a process and the classes of a training split."""
    return ClassBalancing(config, kernels, classes)
