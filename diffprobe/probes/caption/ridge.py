"""Ridge from caption embeddings to features, its penalty chosen by cross-validation over whole groups; closed form."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.metrics.moments import add_moments, subtract_moments
from diffprobe.probes.caption.base import CaptionConfig, FoldSums
from diffprobe.probes.direction.base import ChosenPenalty
from diffprobe.probes.direction.ridge_cv import check_path, solve_path, squared_error

READS = "captions"


@dataclass(frozen=True, kw_only=True)
class Config(CaptionConfig):
    """Keys of `probe=caption_ridge`, below `probe.params`."""

    alphas: tuple[float, ...] = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
    """Path of penalties, each a share of the variance of an embedding's dimension (1 after standardising)."""
    folds: int = 5
    """Number of folds of whole groups, the attribute that the data set names; single samples without one."""
    fold_seed: int = 0
    """Seed of the folds, in which groups of equal size change places."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_path(self.alphas, self.folds, probe="caption_ridge")


def make(config: Config, d_in: int, d_out: int, *, seed: int) -> nn.Linear:
    """Return the map with weights 0 that no optimiser changes."""
    found = nn.Linear(d_in, d_out).requires_grad_(False)
    found.weight.zero_()
    found.bias.zero_()
    return found


def estimate_cv(folds: Sequence[FoldSums], config: Config) -> tuple[Float[Tensor, "d_in d_out"], ChosenPenalty]:
    """Return the weights in the units of inputs and outputs, float64, and how the penalty was chosen.

    One penalty for all outputs: that with the smallest squared error, summed over outputs and held-out samples; of
    equal ones the largest. The weights are then solved again with all samples.

    Args:
        folds: sums over the samples of each fold; every sample is in one fold.

    Raises: ConfigError for constant inputs.
    """
    whole = reduce(add_moments, [fold.sums for fold in folds])
    alphas = torch.tensor(sorted(config.alphas, reverse=True), dtype=torch.float64, device=whole.x.device)
    errors = torch.zeros(len(alphas), dtype=torch.float64, device=whole.x.device)
    for sums, squares in folds:
        weights, offsets = solve_path(subtract_moments(whole, sums), alphas)
        # the function is for 0/1 labels, whose sum is that of their squares
        errors += (squared_error(sums, weights, offsets) - sums.y + squares).sum(1)
    errors /= whole.n
    best = int(errors.argmin())
    weights, _ = solve_path(whole, alphas[best : best + 1])
    chosen = ChosenPenalty(
        alpha=float(alphas[best]),
        at_edge=len(alphas) > 1 and best in (0, len(alphas) - 1),
        path=tuple(alphas.tolist()),
        errors=tuple(errors.tolist()),
    )
    return weights[0], chosen
