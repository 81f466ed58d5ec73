"""Decide by errors: the rank of the right candidate, the correction by a candidate's mean error, and accuracy by cost.

A tie is wrong: of candidates with equal errors, the right one is ranked last. NaN marks a candidate without a score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.probes.score.staged_errors import weighted_error


def ranks(errors: Float[Tensor, "sample n"], right: Int[Tensor, " sample"]) -> Int[Tensor, " sample"]:
    """Return how many candidates are not worse than the right one, without itself; 0 is the best.

    Args:
        errors: one number per candidate, infinite for one that was pruned; a right candidate that was pruned is last.
        right: column of the right candidate.

    >>> ranks(torch.tensor([[1.0, 2.0, 1.0], [3.0, 1.0, 2.0]]), torch.tensor([0, 1])).tolist()
    [1, 0]
    """
    own = errors.gather(1, right[:, None])
    return (errors <= own).sum(1) - 1


def is_chosen(errors: Float[Tensor, "sample n"], right: Int[Tensor, " sample"]) -> Bool[Tensor, " sample"]:
    """Return whether the right candidate has the least error; a tie is wrong."""
    return (ranks(errors, right) == 0) & errors.gather(1, right[:, None]).squeeze(1).isfinite()


def without_prior(errors: Float[Tensor, "sample n"]) -> Float[Tensor, "sample n"]:
    """Subtract from each error the mean error of the same candidate over the other samples.

    A caption that lowers the error of all images alike has no advantage then. Columns are the same candidates for all
    samples, and each is scored for each sample.

    Raises: ConfigError with fewer than two samples or with a candidate that was not scored for a sample.
    """
    if len(errors) < 2 or not bool(errors.isfinite().all()):
        raise ConfigError(
            "prior_correction needs every candidate's error for at least two images.",
            fix="stages=[], candidates.kind=retrieval or classes; or prior_correction=false",
        )
    return errors - (errors.sum(0, keepdim=True) - errors) / (len(errors) - 1)


def shuffled_positives(offered: Bool[Tensor, "sample n"], keys: Sequence[str], seed: int) -> Int[Tensor, " sample"]:
    """Draw a column for each sample among its candidates, by (seed, key): the positives of a control.

    The share of samples that "choose" it is 1 / n in expectation, unless the score prefers positions.
    """
    drawn = []
    for row, key in zip(offered, keys, strict=True):
        columns = row.nonzero().flatten()
        drawn.append(int(columns[derive_seed("shuffled positives", seed, key) % len(columns)]))
    return torch.tensor(drawn)


@dataclass(frozen=True)
class CurvePoint:
    """Accuracy with the first timesteps alone."""

    n_timesteps: int
    """Number of timesteps."""
    passes: float
    """Denoiser passes per image until then, each with one candidate at one timestep."""
    accuracy: float
    """Share of samples whose right candidate has the least error."""


def curve(
    errors: Float[Tensor, "sample n timestep"],
    right: Int[Tensor, " sample"],
    weights: Float[Tensor, " timestep"],
    correct: Callable[[Tensor], Tensor] = lambda scores: scores,
) -> list[CurvePoint]:
    """Return the accuracy with the first 1, 2, 4, ... and with all timesteps, from the same errors.

    Args:
        errors: timesteps in the order in which they were scored (`nested_timesteps`).
        correct: applied to the weighted errors [sample, n], for example `without_prior`.
    """
    n = errors.shape[2]
    lengths = sorted({min(1 << power, n) for power in range(n.bit_length() + 1)})
    points = []
    for length in lengths:
        part = errors[..., :length]
        chosen = is_chosen(correct(weighted_error(part, weights[:length])), right)
        passes = float(part.isfinite().sum()) / len(errors)
        points.append(CurvePoint(length, passes, float(chosen.double().mean())))
    return points
