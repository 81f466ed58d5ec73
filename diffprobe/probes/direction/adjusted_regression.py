"""Covariate-adjusted least squares: the change of the features with the label, nuisances held fixed, in closed form."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.direction.base import AdjustedMoments, DirectionConfig, class_means

NEEDS_GRAM = False


@dataclass(frozen=True, kw_only=True)
class Config(DirectionConfig):
    """Keys of `probe=adjusted_regression`, below `probe.params`."""

    nuisances: tuple[str, ...] = ()
    """Attributes (or "label") that are held fixed, at least one; each value is a column of the regression. A target
    among them is left out for itself."""
    nuisance_penalty: float = 1e-4
    """Ridge penalty of the nuisances, in the unit of the variance of a column; the label has none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.nuisances or len(set(self.nuisances)) < len(self.nuisances):
            raise ConfigError(
                f"nuisances={list(self.nuisances)} of probe 'adjusted_regression': at least one, and each once.",
                "without one the estimate is that of probe=mean_difference",
                fix="probe.params.nuisances=[ATTRIBUTE]",
            )
        if not 0 < self.nuisance_penalty < float("inf"):
            raise ConfigError(
                f"nuisance_penalty={self.nuisance_penalty} of probe 'adjusted_regression': above 0 and finite."
            )


def estimate_adjusted(sums: AdjustedMoments, config: Config) -> Float[Tensor, "d_in columns"]:
    """Return one direction per label column: the coefficients of the label in x = a + b y + C z, z the nuisances.

    The label is regressed on the nuisances, and the features on what is left of it, which gives the same b as the joint
    regression (Frisch, Waugh and Lovell).

    Returns: the difference of the features between both ends at equal nuisances, in the unit of the features, float64.
    Raises: EmptyClass if either side has no sample; ConfigError if the nuisances determine the label.
    """
    labels, design = sums.labels, sums.design
    class_means(labels)  # refuses a side without samples
    assert design.gram is not None
    n = labels.n
    share, mean_z = labels.y / n, design.x.reshape(-1) / n
    with_label = labels.xy / n - torch.outer(labels.x.reshape(-1) / n, share)
    with_nuisance = sums.nuisances.xy / n - torch.outer(labels.x.reshape(-1) / n, mean_z)
    across = design.xy / n - torch.outer(mean_z, share)
    covariance = design.gram / n - torch.outer(mean_z, mean_z)
    variance = share * (1 - share)
    exact = torch.linalg.pinv(covariance, rtol=1e-9, hermitian=True) @ across
    if variance[0] - across[:, 0] @ exact[:, 0] <= 1e-7 * variance[0]:
        raise ConfigError(
            f"adjusted_regression: the nuisances ({', '.join(config.nuisances)}) determine the label.",
            "no samples differ in the label at equal nuisances",
            fix="fewer nuisances, or samples that break the dependence",
        )
    penalty = config.nuisance_penalty * torch.eye(len(mean_z), dtype=mean_z.dtype, device=mean_z.device)
    weights = torch.linalg.solve(covariance + penalty, across)
    left = variance - (across * weights).sum(0)
    return (with_label - with_nuisance @ weights) / left
