"""Selection of the latents that a report shows, and their summary statistics with the chance level of label entropy.

The images of a latent come from `analysis/top_samples.py`; `report/pages/page.py` renders the panels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.active_groups import ActiveGroups
from diffprobe.core.errors import ConfigError, EmptyClass

RULE = (
    "Latents active on at least {min_active} samples are sorted by density and cut into {n} bins of equal count; "
    "each bin gives the latent whose active samples have the lowest label entropy "
    "(ties: the larger maximum activation, then the smaller number)."
)


@dataclass(frozen=True, kw_only=True)
class LatentSummary:
    """Summary statistics of one latent."""

    latent: int
    """Number of the latent."""
    n_active: int
    """Samples on which it is active (activation above 0)."""
    density: float
    """n_active as a share of all samples, 0..1."""
    mean_activation: float
    """Mean over the samples on which it is active."""
    max_activation: float
    """Largest activation."""
    label_entropy: float
    """Entropy of the labels of its active samples, in bits; 0 if they are of one class."""
    chance_entropy: float
    """Mean label entropy of as many samples drawn at random without replacement, in bits; where samples have groups, of
    as many groups with as many samples in each (`ActiveGroups.draw`)."""
    chance_entropy_sd: float
    """Standard deviation of this entropy over the draws, in bits."""
    top_label: int
    """The most frequent label of the active samples (ties: the smaller id)."""
    top_label_share: float
    """Share of the active samples with this label, 0..1."""
    n_groups: int | None
    """Groups of its active labelled samples; None where samples have no groups."""


@dataclass(frozen=True, kw_only=True)
class LatentSelection:
    """The selected latents and the rule of the selection."""

    latents: tuple[int, ...]
    """Selected latents, from the rarest to the densest."""
    rule: str
    """The rule as a sentence, with its parameters."""
    n_eligible: int
    """Latents active on at least `min_active` samples."""
    n_latents: int
    """Number of all latents."""


class LatentCounts:
    """Sums per latent over a stream of codes: activity, activation and labels.

    Args:
        n_latents: number of latents of the code.
        n_classes: number of classes of the label.
        groups_of: the latents that `summarize_latent` gets, where samples have groups; () for samples without groups.
    """

    def __init__(self, n_latents: int, n_classes: int, *, groups_of: Sequence[int] = ()) -> None:
        if n_latents < 1 or n_classes < 1:
            raise ConfigError(f"latent counts: n_latents={n_latents}, n_classes={n_classes}; allowed: at least 1.")
        self.n_samples = 0
        self.n_active = np.zeros(n_latents, dtype=np.int64)
        self.total = np.zeros(n_latents)
        self.maximum = np.zeros(n_latents)
        self.label_active = np.zeros((n_latents, n_classes), dtype=np.int64)
        self.label_samples = np.zeros(n_classes, dtype=np.int64)
        self.groups = ActiveGroups(groups_of, n_classes) if groups_of else None

    def update(
        self,
        values: Float[Tensor, "batch k"],
        indices: Int[Tensor, "batch k"],
        label: Int[Tensor, " batch"],
        group: Int[Tensor, " batch"] | None = None,
    ) -> None:
        """Add a batch of codes; samples without a label (-1) count for activity but not for entropy.

        Args:
            values, indices: activation and number of the active latents of each sample, no latent twice.
            label: label of each sample.
            group: id of the group of each sample, -1 for a group of its own; needed where the groups are kept.
        Raises: ConfigError for other shapes, and for groups that are not kept or are missing.
        """
        if values.shape != indices.shape or values.ndim != 2 or len(label) != len(values):
            raise ConfigError(
                "a batch of codes needs values and indices of one shape [batch, k] and one label per row.",
                f"values: {tuple(values.shape)}  indices: {tuple(indices.shape)}  label: {tuple(label.shape)}",
            )
        activation = values.detach().to("cpu").double().numpy().ravel()
        labels = label.cpu().numpy()
        fired = activation > 0
        latent = indices.cpu().numpy().ravel()[fired]
        activation, owner = activation[fired], np.repeat(labels, values.shape[1])[fired]
        if (group is None) != (self.groups is None):
            raise ConfigError(
                "latent counts: groups of samples come with every batch or with none.",
                f"groups_of: {len(self.groups.latents) if self.groups else 0} latents; this batch has "
                f"{'no groups' if group is None else 'groups'}",
            )
        if self.groups is not None and group is not None:
            sample = np.repeat(np.arange(len(labels)), values.shape[1])[fired]
            self.groups.update(latent, sample, labels, group.cpu().numpy())
        self.n_samples += len(labels)
        np.add.at(self.n_active, latent, 1)
        np.add.at(self.total, latent, activation)
        np.maximum.at(self.maximum, latent, activation)
        np.add.at(self.label_active, (latent[owner >= 0], owner[owner >= 0]), 1)
        np.add.at(self.label_samples, labels[labels >= 0], 1)


def select_latents(counts: LatentCounts, *, n: int = 24, min_active: int = 10) -> LatentSelection:
    """Select `n` latents over the range of densities: the one with the lowest label entropy of each density bin.

    Label entropy is only comparable between latents that fire about equally often, since few samples tend to be of few
    classes. The selection depends on labels, so it must be made on other samples than those shown.

    Args:
        counts: sums over the samples of the selection (train or validation split).
        n: latents to select; fewer are returned if fewer are eligible.
        min_active: samples on which a latent must be active.
    Raises: EmptyClass if no latent is active often enough.
    """
    eligible = np.flatnonzero(counts.n_active >= max(min_active, 1))
    if len(eligible) == 0:
        raise EmptyClass(
            f"no latent is active on {min_active} or more of {counts.n_samples} samples.",
            f"most active: {int(counts.n_active.max())} samples",
            fix="select from more samples, or lower min_active",
        )
    by_density = eligible[np.lexsort((eligible, counts.n_active[eligible]))]
    selected = []
    for part in np.array_split(by_density, min(n, len(by_density))):
        entropy = [_entropy(counts.label_active[latent]) for latent in part]
        selected.append(int(part[np.lexsort((part, -counts.maximum[part], np.round(entropy, 12)))[0]]))
    return LatentSelection(
        latents=tuple(selected),
        rule=RULE.format(n=n, min_active=min_active),
        n_eligible=len(eligible),
        n_latents=len(counts.n_active),
    )


def summarize_latent(counts: LatentCounts, latent: int, *, n_draws: int = 200, seed: int = 0) -> LatentSummary:
    """Return the summary of one latent, with the label entropy expected by chance.

    A latent that is active on twelve variants of one drawing is as pure as any drawing is: where samples have groups,
    chance draws groups.

    Raises: EmptyClass if the latent is active on no labelled sample; ConfigError for a latent whose groups are not kept
        although those of others are.
    """
    active, labels = int(counts.n_active[latent]), counts.label_active[latent]
    n_labelled = int(labels.sum())
    if n_labelled == 0:
        raise EmptyClass(f"latent {latent} is active on no labelled sample of {counts.n_samples}.")
    generator = np.random.default_rng([seed, latent])
    if counts.groups is None:
        draws = generator.multivariate_hypergeometric(counts.label_samples, n_labelled, size=n_draws)
    else:
        draws = counts.groups.draw(latent, n_draws, generator)
    chance = np.array([_entropy(draw) for draw in draws])
    return LatentSummary(
        latent=latent,
        n_active=active,
        density=active / counts.n_samples,
        mean_activation=float(counts.total[latent] / active),
        max_activation=float(counts.maximum[latent]),
        label_entropy=_entropy(labels),
        chance_entropy=float(chance.mean()),
        chance_entropy_sd=float(chance.std()),
        top_label=int(labels.argmax()),
        top_label_share=float(labels.max() / n_labelled),
        n_groups=None if counts.groups is None else len(counts.groups.counts(latent)),
    )


def _entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy of counts in bits; 0 for no counts."""
    share = counts[counts > 0] / max(int(counts.sum()), 1)
    return float(-(share * np.log2(share)).sum()) + 0.0  # + 0.0 turns -0.0 into 0.0
