"""Ridge on standardised features, its penalty chosen by cross-validation over whole groups; all in closed form.

Sums over the samples of each fold are enough: a fit to all other folds, and its squared error on the fold, are both
quadratic forms of them. So one pass over the training set serves every fold, penalty and permutation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.metrics.moments import Moments, add_moments, subtract_moments
from diffprobe.probes.direction.base import ChosenPenalty, DirectionConfig, class_means

NEEDS_GRAM = True


@dataclass(frozen=True, kw_only=True)
class Config(DirectionConfig):
    """Keys of `probe=ridge_cv`, below `probe.params`."""

    alphas: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    """Path of penalties, each a share of the variance of a feature (1 after standardising)."""
    folds: int = 5
    """Number of folds of whole groups, the attribute that the data set names; single samples without one."""
    fold_seed: int = 0
    """Seed of the folds, in which groups of equal size change places."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_path(self.alphas, self.folds, probe="ridge_cv")


def check_path(alphas: Sequence[float], folds: int, *, probe: str) -> None:
    """Check a path of penalties and the number of folds that choose among them. Raises: ConfigError."""
    if not alphas or len(set(alphas)) < len(alphas):
        raise ConfigError(f"alphas={list(alphas)} of probe '{probe}': at least one, and each once.")
    if not all(0 < alpha < float("inf") for alpha in alphas):
        raise ConfigError(f"alphas={list(alphas)} of probe '{probe}': each must be above 0 and finite.")
    if folds < 2:
        raise ConfigError(f"folds={folds} of probe '{probe}': cross-validation needs at least 2.")


def estimate_cv(folds: Sequence[Moments], config: Config) -> tuple[Float[Tensor, "d_in columns"], list[ChosenPenalty]]:
    """Return one direction per label column, and how the penalty of each column was chosen.

    For each fold and penalty the 0/1 labels are regressed on the standardised features of all other folds, with an
    offset that is not penalised: w = (C + alpha I)^-1 c, C the covariance and c that of features and labels. The
    penalty with the smallest squared error over all held-out samples is taken, of equal ones the largest, and w is
    solved again with all samples. A feature that is constant has weight 0.

    Args:
        folds: sums over the samples of each fold, with the sum of x x^T; every sample is in one fold.

    Returns: the weights in the unit of the features, not normalised, float64; and one choice per column.
    Raises: EmptyClass if either side has no sample; ConfigError for constant features.
    """
    whole = reduce(add_moments, folds)
    class_means(whole)  # refuses a side without samples
    alphas = torch.tensor(sorted(config.alphas, reverse=True), dtype=torch.float64, device=whole.x.device)
    errors = torch.zeros(len(alphas), len(whole.y), dtype=torch.float64, device=whole.x.device)
    for fold in folds:
        weights, offsets = solve_path(subtract_moments(whole, fold), alphas)
        errors += squared_error(fold, weights, offsets)
    errors /= whole.n
    best = errors.argmin(0)
    weights, _ = solve_path(whole, alphas)
    columns = torch.arange(len(best), device=best.device)
    chosen = [
        ChosenPenalty(
            alpha=float(alphas[i]),
            at_edge=int(i) in (0, len(alphas) - 1),
            path=tuple(alphas.tolist()),
            errors=tuple(errors[:, column].tolist()),
        )
        for column, i in enumerate(best.tolist())
    ]
    return weights[best, :, columns].T, chosen


def solve_path(
    sums: Moments, alphas: Float[Tensor, " path"]
) -> tuple[Float[Tensor, "path d_in columns"], Float[Tensor, "path columns"]]:
    """Return weights in the unit of the features, and offsets, for each penalty.

    Raises: ConfigError for constant features.
    """
    assert sums.gram is not None
    mean, share = sums.mean, sums.y / sums.n
    variance = sums.variance
    if not (variance > 0).any():
        raise ConfigError("ridge_cv: the training features are constant.")
    scale = torch.where(variance > 0, variance.clamp(min=1e-300).rsqrt(), 0.0)
    covariance = (sums.gram / sums.n - torch.outer(mean, mean)) * torch.outer(scale, scale)
    with_label = (sums.xy / sums.n - torch.outer(mean, share)) * scale[:, None]
    spectrum, basis = torch.linalg.eigh(covariance)
    turned = basis.T @ with_label
    inverse = 1 / (spectrum.clamp(min=0) + alphas[:, None])
    weights = scale[:, None] * (basis @ (inverse[..., None] * turned))
    return weights, share - mean @ weights


def squared_error(
    sums: Moments, weights: Float[Tensor, "path d_in columns"], offsets: Float[Tensor, "path columns"]
) -> Float[Tensor, "path columns"]:
    """Return the sum over samples of (y - x w - b)^2, from their sums alone."""
    assert sums.gram is not None
    along = sums.x @ weights
    quadratic = (weights * (sums.gram @ weights)).sum(1)
    cross = (weights * sums.xy).sum(1)
    return sums.y - 2 * cross - 2 * offsets * sums.y + quadratic + 2 * offsets * along + sums.n * offsets.square()
