"""A principal component of the features, which knows no labels: a baseline for directions that do."""

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
    """Keys of `probe=pca`, below `probe.params`."""

    component: int = 1
    """Number of the principal component, from 1, which has the largest variance."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.component < 1:
            raise ConfigError(f"component={self.component} of probe 'pca'.", "allowed: from 1")


def estimate(moments: Moments, config: Config) -> Float[Tensor, "d_in columns"]:
    """Return a principal component of the samples at both ends, one sign per label column.

    Labels fix the sign alone: the mean of the positive end is not below that of the negative end. The columns of
    shuffled labels are therefore the same axis, and differ from the first at most by their sign.

    Returns: unit vectors, float64.
    Raises: EmptyClass if either side has no sample; ConfigError for a component that the features do not have.
    Source: Haas et al., FG 2024, unsupervised directions.
    """
    above, below = class_means(moments)
    assert moments.gram is not None
    mean = moments.mean
    spectrum, basis = torch.linalg.eigh(moments.gram / moments.n - torch.outer(mean, mean))
    n_components = int((spectrum > 1e-9 * spectrum[-1].clamp(min=1e-300)).sum())
    if config.component > n_components:
        raise ConfigError(
            f"component={config.component} of probe 'pca': the training features have {n_components} components.",
            fix=f"probe.params.component=1 to {n_components}" if n_components else "features that vary",
        )
    axis = basis[:, -config.component]
    largest = axis[axis.abs().argmax()]  # eigenvectors have no sign of their own
    axis = axis * torch.where(largest < 0, -1.0, 1.0)
    along = axis @ (above - below)
    return axis[:, None] * torch.where(along < 0, -1.0, 1.0)
