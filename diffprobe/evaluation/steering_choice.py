"""The choice of cell, latent, neuron and direction of `diffprobe eval steering`, on generated images of another seed.

Training samples rank the latents and neurons of each cell. The first ones of all cells are candidates, each is steered
with, and the one of the largest success at equal collateral is taken. The images have another noise than those on which
the methods are compared, so that no method is favoured by what its choice has seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor

from diffprobe.analysis.matched_collateral import SteeringCurve, success_at
from diffprobe.core.errors import EmptyClass
from diffprobe.evaluation.factor_edits import (
    DIRECTION,
    LATENT,
    NEURON,
    TrainingRows,
    best_latents,
    best_neurons,
    factor_edits,
)
from diffprobe.probes.sae.base import KSAE
from diffprobe.scoring.edits.base import Edit

CHOSEN = (LATENT, DIRECTION, NEURON)
"""Methods with something to choose; random latents and detect-and-replace follow the latent."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """One edit that may be chosen.

    Attributes:
        cell: position of its cell among the cells of the comparison.
        edit: what is done.
        unit: number of the latent or neuron; None for a direction, of which a cell has one.
    """

    cell: int
    edit: Edit
    unit: int | None = None


def candidates(
    sae: KSAE, training: TrainingRows, positive: Bool[Tensor, " sample"], negative: Bool[Tensor, " sample"], *,
    cell: int, n: int, n_bank: int, seed: int,
) -> dict[str, tuple[Candidate, ...]]:  # fmt: skip
    """Return the candidates of one cell, by method, those that training samples rank first before the others.

    Args:
        positive, negative: samples with the wanted value, and with that at the other end.
        cell: position of the cell.
        n: latents, and neurons.
        n_bank, seed: as of `factor_edits`.

    Raises: EmptyClass for a value without samples, or an autoencoder without an active latent.
    """
    if not positive.any() or not negative.any():
        raise EmptyClass(f"{int(positive.sum())} training samples have the value, {int(negative.sum())} the other end.")
    latents, neurons = best_latents(training, positive, n), best_neurons(training, positive, n)
    if not latents:
        raise EmptyClass("no latent of the autoencoder is active on training samples.")

    def made(method: str, latent: int, neuron: int) -> Edit:
        found = factor_edits(
            sae, training, positive, negative, n_random=1, n_bank=n_bank, seed=seed, latent=latent, neuron=neuron
        )  # fmt: skip
        return found.edits[method][0]

    return {
        LATENT: tuple(Candidate(cell=cell, edit=made(LATENT, one, neurons[0]), unit=one) for one in latents),
        DIRECTION: (Candidate(cell=cell, edit=made(DIRECTION, latents[0], neurons[0])),),
        NEURON: tuple(Candidate(cell=cell, edit=made(NEURON, latents[0], one), unit=one) for one in neurons),
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class Choice:
    """What the choice is between, and what each candidate did; of one factor."""

    offered: dict[str, list[Candidate]] = field(default_factory=lambda: {method: [] for method in CHOSEN})
    """Method -> its candidates, cell after cell."""
    curves: dict[str, list[SteeringCurve]] = field(default_factory=lambda: {method: [] for method in CHOSEN})
    """Method -> the curve of each candidate; empty where there is one candidate, which needs none."""

    def offer(self, found: Mapping[str, Sequence[Candidate]]) -> None:
        """Add the candidates of a cell."""
        for method, some in found.items():
            self.offered[method] += some

    def open(self, method: str) -> bool:
        """Return whether a method has more than one candidate."""
        return len(self.offered[method]) > 1

    def best(self, method: str, level: float) -> Candidate:
        """Return the candidate of the largest success with at most some collateral; of equal ones the first."""
        if not self.open(method):
            return self.offered[method][0]
        scores = [success_at(curve.success.mean(1), curve.collateral.mean(1), level) for curve in self.curves[method]]
        return self.offered[method][scores.index(max(scores))]

    def fact(self, method: str, seed: int, n_images: int) -> str:
        """Return in words how a method was chosen; "" where there was no choice."""
        if not self.open(method):
            return ""
        return f"; of {len(self.offered[method])} by {n_images} images of seed {seed}"
