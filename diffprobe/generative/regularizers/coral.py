"""CORAL: a supervised contrastive loss separates the classes at the bottleneck of the U-Net.

Rodriguez et al., 2506.15933, and the released code (SankarLab/coral-lt-diffusion): the output of the mid block is
averaged over the image and projected by a head, the projections are normalised, and the supervised contrastive loss
(Khosla et al., 2004.11362, equation 2) pulls those of a class together and pushes those of other classes away. With z_i
the projection of sample i, P(i) the other samples of its class in the batch, and

    L_i = -1/|P(i)| sum_{p in P(i)} log(exp(z_i z_p / tau) / sum_{a != i} exp(z_i z_a / tau)),

the term is

    weight * mean_i exp((1 - t_i / T) / s) * mean_i L_i

over the samples i with a class; the second mean is over those with another sample of their class. The first mean, which
weighs batches with little noise more, is one number per batch in the released code, and so it is here.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.device import exact
from diffprobe.core.errors import ConfigError
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
    """Keys of `regularizer=coral`, below `regularizer.params`."""

    weight: float = 0.01
    """Weight of the term. Ours: with the released default, .5, the term is tens of times the denoising error of a
    latent model, because the time weight is 8 on average over timesteps."""
    temperature: float = 0.1
    """tau of the contrastive loss; the released default."""
    time_scale: float = 0.3
    """s of the weight exp((1 - t / T) / s); the released default."""
    width: int = 128
    """Size of a projection. Ours."""

    def __post_init__(self) -> None:
        for name in ("weight", "temperature", "time_scale"):
            require_range(f"regularizer.params.{name}", getattr(self, name), zero=False)
        if self.width < 1:
            raise ConfigError(f"regularizer.params.width={self.width} is out of range: at least 1.")


class CORAL(Regularizer):
    """The supervised contrastive loss at the mid block; no further pass."""

    def __init__(self, config: Config, process: ForwardProcess) -> None:
        self._config, self._n_timesteps = config, process.n_timesteps

    def make_head(self, channels: int, seed: int) -> nn.Module:
        """Return mean over the image, then a linear layer."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, self._config.width))

    def contrast(self, own: ClassBatch, predict: Predict, generator: torch.Generator) -> Float[Tensor, ""]:
        """Return the weighted loss, see the head of the file."""
        assert own.embedding is not None
        cleanness = 1 - own.timesteps.float() / self._n_timesteps
        time_weight = torch.exp(cleanness / self._config.time_scale).mean()
        loss = supervised_contrastive_loss(own.embedding, own.classes, self._config.temperature)
        return self._config.weight * time_weight * loss


def supervised_contrastive_loss(
    embedding: Float[Tensor, "batch width"], classes: Int[Tensor, " batch"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean loss of the samples with another sample of their class, in float32.

    It is 0, with a gradient of 0, if no class is there twice, or if all samples have one class: then there is nothing
    to contrast.

    Args:
        embedding: projections; they are normalised here.
        classes: class of each.
        temperature: above 0.
    """
    same = classes[:, None] == classes
    itself = torch.eye(len(classes), dtype=torch.bool, device=classes.device)
    positives = (same & ~itself).sum(1)
    if bool(same.all()) or not bool(positives.any()):
        return embedding.sum().float() * 0
    with exact(embedding.device, "float32"):
        z = nn.functional.normalize(embedding.float(), dim=1)
        logits = (z @ z.T / temperature).masked_fill(itself, -math.inf)
        log_share = logits - logits.logsumexp(1, keepdim=True)
        each = -log_share.masked_fill(~same | itself, 0).sum(1) / positives.clamp(min=1)
        return each[positives > 0].mean()


def make(config: Config, process: ForwardProcess, kernels: ReverseKernels, classes: TrainingClasses) -> CORAL:
    """Build the term for a process."""
    return CORAL(config, process)
