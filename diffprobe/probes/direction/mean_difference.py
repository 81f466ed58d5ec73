"""Mean difference: from the mean of one end to the mean of the other, in closed form."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from diffprobe.metrics.moments import Moments
from diffprobe.probes.direction.base import DirectionConfig, class_means, moments_of

NEEDS_GRAM = False


@dataclass(frozen=True, kw_only=True)
class Config(DirectionConfig):
    """Keys of `probe=mean_difference`, below `probe.params`."""


def mean_difference(x: Float[Tensor, "batch d_in"], positive: Bool[Tensor, " batch"]) -> Float[Tensor, " d_in"]:
    """Return the mean of the positive minus the mean of the negative samples, summed in float64.

    Args:
        x: features of one cell; any unit.
        positive: whether a sample belongs to the positive end.

    Returns: the direction in the unit of x, not normalised, float64.
    Raises: EmptyClass if either side has no sample.
    Source: Haas et al., FG 2024, supervised directions.

    >>> import torch
    >>> mean_difference(torch.tensor([[0.0, 0.0], [2.0, 4.0]]), torch.tensor([False, True]))
    tensor([2., 4.], dtype=torch.float64)
    """
    return estimate(moments_of(x, positive, gram=False), Config(positive=""))[:, 0]


def estimate(moments: Moments, config: Config) -> Float[Tensor, "d_in columns"]:
    """Return one direction per label column. Raises: EmptyClass."""
    above, below = class_means(moments)
    return above - below
