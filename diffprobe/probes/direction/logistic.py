"""Logistic: the direction that a trained two-class probe reads. The only estimator here that is trained by gradient."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.probes.direction.base import DirectionConfig

NEEDS_GRAM = False


@dataclass(frozen=True, kw_only=True)
class Config(DirectionConfig):
    """Keys of `probe=logistic`, below `probe.params`. Epochs, learning rate and weight decay stand in `trainer`."""


class LogisticDirections(nn.Module):
    """Logistic regressions on the standardised features of one cell, one a label column, independent of each other.

    Args:
        d_in: width of the features.
        n_columns: number of label columns.
    """

    mean: Tensor
    inverse_std: Tensor

    def __init__(self, d_in: int, n_columns: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(n_columns, d_in))
        self.bias = nn.Parameter(torch.zeros(n_columns))
        self.register_buffer("mean", torch.zeros(d_in))
        self.register_buffer("inverse_std", torch.ones(d_in))

    @torch.no_grad()
    def standardise(self, mean: Float[Tensor, " d_in"], variance: Float[Tensor, " d_in"]) -> None:
        """Take mean and variance of the training set. A dimension without variance becomes 0."""
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(variance > 0, variance.clamp(min=1e-300).rsqrt(), 0.0))

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_columns"]:
        """Return the log-odds of the positive end, for features in their own unit."""
        return F.linear((x - self.mean) * self.inverse_std, self.weight, self.bias)

    def directions(self) -> Float[Tensor, "d_in n_columns"]:
        """Return the weights in the unit of the unstandardised features, float64, not normalised."""
        return (self.weight.detach().double() * self.inverse_std.double()).T
