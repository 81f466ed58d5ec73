"""Linear discriminant analysis with a shrunk covariance, in closed form: the axis that separates two ends best."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.metrics.moments import Moments
from diffprobe.probes.direction.base import DirectionConfig, class_means

NEEDS_GRAM = True


@dataclass(frozen=True, kw_only=True)
class Config(DirectionConfig):
    """Keys of `probe=lda`, below `probe.params`."""

    shrinkage: float | None = None
    """Weight of the diagonal target in the covariance within the ends, above 0 to 1, which gives the mean difference;
    None for the oracle approximating shrinkage, which follows from the features and their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shrinkage is not None and not 0 < self.shrinkage <= 1:
            raise ConfigError(f"shrinkage={self.shrinkage} of probe 'lda'.", "allowed: above 0 to 1, or null")


def estimate(moments: Moments, config: Config) -> Float[Tensor, "d_in columns"]:
    """Return one direction per label column.

    w = ((1 - s) S + s m I)^-1 (difference of the means), where S is the covariance within the ends (divisor n), m its
    mean variance and s the shrinkage; in float64.

    Returns: the weights, not normalised, float64.
    Raises: EmptyClass if either side has no sample; ConfigError if the features do not vary within the ends.
    Source: Chen et al., Shrinkage Algorithms for MMSE Covariance Estimation, 2010, equation 23 (s).
    """
    above, below = class_means(moments)
    assert moments.gram is not None
    n, d_in = moments.n, len(moments.x)
    mean, share, apart = moments.mean, moments.y / n, above - below
    between = share * (1 - share)  # S = C - between * apart apart^T, C the covariance of all samples
    covariance = moments.gram / n - torch.outer(mean, mean)
    variance = (covariance.trace() - between * apart.square().sum(0)) / d_in
    if not (variance > 1e-12 * covariance.trace() / d_in).all():
        raise ConfigError("lda: the training features do not vary within the ends.")
    if config.shrinkage is None:
        along = (apart * (covariance @ apart)).sum(0)
        norm = covariance.square().sum() - 2 * between * along + (between * apart.square().sum(0)).square()
        weight = _shrinkage(norm / d_in**2, variance, n=n, d_in=d_in)
    else:
        weight = torch.full_like(variance, config.shrinkage)
    # S and C differ by a multiple of apart apart^T, which changes the length of the solution and not its direction
    spectrum, basis = torch.linalg.eigh(covariance)
    inverse = 1 / ((1 - weight) * spectrum.clamp(min=0)[:, None] + weight * variance)
    return basis @ (inverse * (basis.T @ apart))


def _shrinkage(
    mean_square: Float[Tensor, " columns"], variance: Float[Tensor, " columns"], *, n: int, d_in: int
) -> Float[Tensor, " columns"]:
    """Return the oracle approximating shrinkage, above 0 to 1, of covariances.

    Args:
        mean_square: mean square of the entries of each.
        variance: mean of the diagonal of each.
        n, d_in: numbers of samples and of features.
    """
    spread = (n + 1) * (mean_square - variance.square() / d_in)
    return torch.where(spread > 0, (mean_square + variance.square()) / spread, torch.inf).clamp(max=1)
