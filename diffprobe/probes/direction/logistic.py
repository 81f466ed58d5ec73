"""Logistic: the weight vector of a logistic regression on standardised features, trained by gradient."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from diffprobe.probes.direction.base import DirectionConfig, moments_of
from diffprobe.probes.full_batch import fit_full_batch

NEEDS_GRAM = False


@dataclass(frozen=True, kw_only=True)
class Config(DirectionConfig):
    """Keys of `probe=logistic`, below `probe.params`. Epochs, learning rate and weight decay are keys of `trainer`."""


def make(config: Config, d_in: int, n_columns: int) -> "LogisticDirections":
    """Return untrained regressions, one per label column; the weights start at zero."""
    return LogisticDirections(d_in, n_columns)


def fit(
    x: Float[Tensor, "samples d_in"],
    positive: Bool[Tensor, " samples"],
    config: Config,
    *,
    l2: float | None = None,
    max_steps: int = 500,
) -> Float[Tensor, " d_in"]:
    """Fit one regression in memory by full-batch L-BFGS in float64.

    Args:
        x: features in any unit.
        positive: whether a sample belongs to the positive end.
        config: unused; every estimator takes it.
        l2: strength of the penalty l2 / 2 * |w|^2; None for 1 / samples, the default of scikit-learn (C = 1).
        max_steps: largest number of L-BFGS iterations.

    Returns: the direction in the unit of x, float64, not normalised.
    """
    model = LogisticDirections(x.shape[1], 1).to(x.device).double()
    whole, side, sums = x.double(), positive.double()[:, None], moments_of(x, positive, gram=False)
    model.standardise(sums.mean, sums.variance)
    penalty = 1 / len(x) if l2 is None else l2
    fit_full_batch(
        model, lambda made: F.binary_cross_entropy_with_logits(made(whole), side), l2=penalty, max_steps=max_steps
    )
    return model.directions()[:, 0]


class LogisticDirections(nn.Module):
    """Logistic regressions on the standardised features of one cell, one per label column, independent of each other.

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
        """Set the mean and variance of the training set. A dimension without variance becomes 0."""
        self.mean.copy_(mean)
        self.inverse_std.copy_(torch.where(variance > 0, variance.clamp(min=1e-300).rsqrt(), 0.0))

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_columns"]:
        """Return the log-odds of the positive end, for features in their own unit."""
        return F.linear((x - self.mean) * self.inverse_std, self.weight, self.bias)

    def directions(self) -> Float[Tensor, "d_in n_columns"]:
        """Return the weights in the unit of the unstandardised features, float64, not normalised."""
        return (self.weight.detach().double() * self.inverse_std.double()).T
