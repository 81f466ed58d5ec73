"""The edits that are compared for one value of a factor, each made from training samples.

What is edited, and the unit of its strength, come from the rows of a feature store; no generated image is looked at.
Which of several latents, neurons and cells is best on generated images is the choice of `steering_choice.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.rng import derive_seed
from diffprobe.evaluation.sample_codes import largest_of_samples
from diffprobe.metrics.auroc import auroc
from diffprobe.probes.sae.base import KSAE
from diffprobe.scoring.edits.base import Edit
from diffprobe.scoring.edits.detect_and_replace import DetectAndReplace, LatentActive
from diffprobe.scoring.edits.direction import AddVector
from diffprobe.scoring.edits.latent import EditLatents
from diffprobe.scoring.edits.neuron import EditNeurons

LATENT, RANDOM, DIRECTION, NEURON, REPLACE = (
    "best latent", "random latents", "mean difference", "best neuron", "detect and replace",
)  # fmt: skip
"""Names of the methods."""
_IMAGES = 32
"""Images that are encoded at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingRows:
    """Features of training samples, and what an autoencoder makes of them.

    Attributes:
        rows: features of samples and their places, (sample, place, d_in); pooled cells have one place.
        largest: activation of each latent of each sample, the largest over its places, (sample, latent).
        density: share of rows on which each latent is active, (latent,).
        means: mean activation of each latent over the rows on which it is active; 0 for one that never is, (latent,).
    """

    rows: Float[Tensor, "sample place d_in"]
    largest: Float[Tensor, "sample latent"]
    density: Float[Tensor, " latent"]
    means: Float[Tensor, " latent"]

    @classmethod
    @torch.no_grad()
    def of(cls, sae: KSAE, rows: Float[Tensor, "sample place d_in"]) -> "TrainingRows":
        """Encode all rows. Raises: ConfigError for rows of another width."""
        n, sums = torch.zeros(sae.n_latents), torch.zeros(sae.n_latents, dtype=torch.float64)
        largest = []
        for part in rows.split(_IMAGES):
            code = sae.encode(part.flatten(0, 1))
            active = code.values > 0
            n += torch.bincount(code.indices[active], minlength=sae.n_latents)
            sums.index_add_(0, code.indices[active], code.values[active].double())
            found = largest_of_samples(code, len(part), sae.n_latents)
            largest.append(torch.zeros(len(part), sae.n_latents).scatter_(1, found.indices, found.values.float()))
        n_rows = rows.shape[0] * rows.shape[1]
        return cls(rows=rows, largest=torch.cat(largest), density=n / n_rows, means=(sums / n.clamp(min=1)).float())

    @property
    def flat(self) -> Float[Tensor, "rows d_in"]:
        """All rows."""
        return self.rows.flatten(0, 1)


@dataclass(frozen=True, kw_only=True)
class FactorEdits:
    """The edits of one value of a factor."""

    edits: Mapping[str, tuple[Edit, ...]]
    """Method -> its edits; of several, the mean of what they do is the method's."""
    facts: Mapping[str, str]
    """Method -> what was chosen, in words."""


def best_latents(training: TrainingRows, positive: Bool[Tensor, " sample"], n: int) -> tuple[int, ...]:
    """Return the n latents whose largest activation over the places of an image separates a value best, by AUROC.

    Latents that are active on no row are left out, so that there may be fewer; the best one is first.
    """
    areas = auroc(training.largest, positive).where(training.density > 0, -1.0)
    order: list[int] = areas.argsort(descending=True, stable=True)[:n].tolist()
    return tuple(one for one in order if training.density[one] > 0)


def best_neurons(training: TrainingRows, positive: Bool[Tensor, " sample"], n: int) -> tuple[int, ...]:
    """Return the n channels whose mean over the places separates a value best in either direction, the best first."""
    areas = auroc(training.rows.double().mean(1), positive)
    order: list[int] = (areas - 0.5).abs().argsort(descending=True, stable=True)[:n].tolist()
    return tuple(order)


def factor_edits(
    sae: KSAE, training: TrainingRows, positive: Bool[Tensor, " sample"], negative: Bool[Tensor, " sample"], *,
    n_random: int, n_bank: int, seed: int, latent: int | None = None, neuron: int | None = None,
) -> FactorEdits:  # fmt: skip
    """Make the edits towards a value.

    - best latent: that whose largest activation over the places of an image separates the value from all others best
      (AUROC), or `latent`; it is raised, the reconstruction error kept.
    - random latents: drawn from those nearest to it in density.
    - mean difference: of the images of the value and those at the other end.
    - best neuron: the channel whose mean over the places of an image separates the value from all others best, or
      `neuron`, in the direction that its AUROC has.
    - detect and replace: rows on which the best latent is not active are replaced by the nearest training row on which
      it is.

    Args:
        positive, negative: samples with the value, and with that at the other end.
        n_random: number of random latents.
        n_bank: rows, drawn from all, among which a replacement is sought.
        seed: of both draws.
        latent, neuron: those to take; None for the best on the training samples.

    Raises: EmptyClass for a value without samples, or an autoencoder without enough active latents.
    """
    if not positive.any() or not negative.any():
        raise EmptyClass(f"{int(positive.sum())} training samples have the value, {int(negative.sum())} the other end.")
    rows = training.flat
    areas = auroc(training.largest, positive)
    latent = int(areas.argmax()) if latent is None else latent
    others = equal_density(training.density, latent, n_random, seed=seed)
    pooled = training.rows.double().mean(1)
    difference = pooled[positive].mean(0) - pooled[negative].mean(0)
    unit = difference / difference.norm()
    spread = float((rows.double() @ unit).std(correction=0))
    of_neurons = auroc(pooled, positive)
    neuron = int((of_neurons - 0.5).abs().argmax()) if neuron is None else neuron
    sign = 1.0 if of_neurons[neuron] >= 0.5 else -1.0
    plain = EditNeurons.of((neuron,), rows)
    chosen = np.random.default_rng(derive_seed("bank", seed)).permutation(len(rows))[:n_bank]
    bank = rows[torch.from_numpy(np.sort(chosen))]

    def raised(one: int) -> EditLatents:
        return EditLatents(dictionary=sae, latents=(one,), means=(float(training.means[one]),))

    replace = DetectAndReplace(detector=LatentActive(dictionary=sae, latent=latent), bank=bank)
    density = float(training.density[latent])
    shares = ", ".join(f"{one} ({float(training.density[one]):.3f})" for one in others)
    return FactorEdits(
        edits={
            LATENT: (raised(latent),),
            RANDOM: tuple(raised(one) for one in others),
            DIRECTION: (AddVector((spread * unit).float()),),
            NEURON: (
                EditNeurons(
                    neurons=(neuron,), units=(sign * plain.units[0],), means=plain.means, width=plain.width, mode="add"
                ),
            ),
            REPLACE: (replace,),
        },
        facts={
            LATENT: f"latent {latent}, training AUROC {float(areas[latent]):.3f}, active on {density:.3f} of rows",
            RANDOM: f"latents {shares}",
            DIRECTION: f"{int(positive.sum())} against {int(negative.sum())} images",
            NEURON: f"channel {neuron}, training AUROC {float(of_neurons[neuron]):.3f}",
            REPLACE: f"{len(replace.candidates(True))} of {len(bank)} rows have latent {latent}",
        },
    )  # fmt: skip


def equal_density(
    density: Float[Tensor, " latent"], latent: int, n: int, *, seed: int, without: Sequence[int] = ()
) -> tuple[int, ...]:
    """Draw latents that are active about as often as another one: from the 4 n nearest to it in log density.

    Args:
        density: share of rows on which each latent is active.
        latent: the other one, which is not drawn.
        n: how many.
        seed: of the draw.
        without: further latents that are not drawn.

    Raises: ConfigError for a latent that is never active; EmptyClass for fewer than n others that are.
    """
    if not density[latent] > 0:
        raise ConfigError(f"latent {latent} is never active, so no other has its density.")
    alive = [one for one in torch.nonzero(density > 0).flatten().tolist() if one not in (latent, *without)]
    if len(alive) < n:
        raise EmptyClass(f"{len(alive)} other latents are active; {n} are needed.")
    nearest: Sequence[int] = sorted(alive, key=lambda one: (abs(float((density[one] / density[latent]).log())), one))
    drawn = np.random.default_rng(derive_seed("equal density", seed)).permutation(min(len(nearest), 4 * n))[:n]
    return tuple(nearest[int(place)] for place in sorted(drawn))
