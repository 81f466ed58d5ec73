"""Ridge: penalised least squares on the label, in closed form; discounts axes of large variance."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.metrics.moments import Moments
from diffprobe.probes.direction.base import DirectionConfig, class_means, moments_of

NEEDS_GRAM = True


@dataclass(frozen=True, kw_only=True)
class Config(DirectionConfig):
    """Keys of `probe=ridge`, below `probe.params`."""

    alpha: float = 0.1
    """Penalty as a share of the features' mean variance; large values give the mean difference."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.alpha > 0:
            raise ConfigError(f"alpha = {self.alpha} of probe 'ridge' must be above 0.")


def ridge(
    x: Float[Tensor, "batch d_in"], positive: Bool[Tensor, " batch"], *, alpha: float = 0.1
) -> Float[Tensor, " d_in"]:
    """Regress the label on the features.

    w = (C + alpha v I)^-1 c, where C is the covariance of x (divisor n), c that of x with the 0/1 label, and
    v = trace(C) / d_in; in float64. The intercept is not penalised.

    Returns: the weights, not normalised, float64.
    Raises: EmptyClass if either side has no sample.
    """
    return estimate(moments_of(x, positive, gram=True), Config(positive="", alpha=alpha))[:, 0]


def estimate(moments: Moments, config: Config) -> Float[Tensor, "d_in columns"]:
    """Return one direction per label column. Raises: EmptyClass."""
    class_means(moments)  # refuses a side without samples
    assert moments.gram is not None
    mean = moments.mean
    covariance = moments.gram / moments.n - torch.outer(mean, mean)
    with_label = moments.xy / moments.n - torch.outer(mean, moments.y / moments.n)
    variance = covariance.diagonal().mean()
    if not variance > 0:
        raise ConfigError("ridge: the training features are constant.")
    penalty = config.alpha * variance * torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    return torch.linalg.solve(covariance + penalty, with_label)
