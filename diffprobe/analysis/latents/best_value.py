"""The class or attribute value that a latent is about: chosen on one split, measured on another."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.label_purity import expected_entropy, normalised_entropy, purity
from diffprobe.analysis.latents.group_scores import group_z
from diffprobe.analysis.latents.permutation_tests import (
    PermutationSettings,
    SparseWeights,
    adjusted,
    permuted_p,
)
from diffprobe.analysis.latents.rank_scores import (
    area_of_sums,
    average_precisions,
    rank_gains,
    weighted_counts,
)
from diffprobe.analysis.latents.sparse_codes import SparseCodes
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.groups import Groups

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class LabelledCodes:
    """Codes of a split whose images all have a value of one target.

    Raises: ConfigError for labels or groups of another number of images.
    """

    codes: SparseCodes
    """Activations."""
    labels: Ints
    """Value of each image, from 0, (images,)."""
    groups: Groups
    """Group of each image."""

    def __post_init__(self) -> None:
        if len(self.labels) != self.codes.n_images or len(self.groups.ids) != self.codes.n_images:
            raise ConfigError(
                f"{len(self.labels)} labels and {len(self.groups.ids)} groups for {self.codes.n_images} images."
            )

    @classmethod
    def known(cls, codes: SparseCodes, labels: Ints, groups: Groups) -> "LabelledCodes":
        """Return the codes of the images that have a value; labels are -1 for none."""
        kept = labels >= 0
        if kept.all():
            return cls(codes=codes, labels=labels, groups=groups)
        return cls(codes=codes.take(kept), labels=labels[kept], groups=Groups.of_values(groups.ids[kept]))


@dataclass(frozen=True, kw_only=True)
class BestValueSettings:
    """How values are chosen and scored."""

    n_top: int = 10
    """Images of each latent, the most active ones of the other split, for purity and entropy."""
    min_count: int = 5
    """Least number of images of a value in either split; rarer ones are not chosen."""
    permutations: PermutationSettings | None = PermutationSettings()
    """Permutations of the labels, by group; None for no test."""

    def __post_init__(self) -> None:
        if self.n_top < 2 or self.min_count < 1:
            raise ConfigError(
                f"best values: n_top={self.n_top}, min_count={self.min_count}.", "allowed: at least 2, at least 1"
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class BestValues:
    """What each latent is about, one entry per latent; NaN where it cannot be measured."""

    value: Ints
    """The value with the largest z on the first split; -1 for a latent that is active on none of its images."""
    z: Floats
    """The z of that choice; not a test, for it is the largest of `n_values`."""
    n_values: int
    """Number of values that were compared: those that are frequent enough in both splits."""
    purity: Floats
    """Share of the value among the latent's most active images of the other split, 0..1."""
    entropy: Floats
    """Normalised entropy of the values of these images, 0 (one value) to 1."""
    auroc: Floats
    """AUROC of the activation for the value on the other split."""
    precision: Floats
    """Average precision of the activation for the value on the other split."""
    purity_p: Floats
    """One-sided p of the purity against labels permuted by group."""
    p: Floats
    """One-sided p of the AUROC."""
    prevalence: Floats
    """Share of the value among the other split's images: what purity and average precision are by chance."""
    chance_entropy: float
    """The entropy that independent labels give for `n_top` images."""
    n_permutations: int
    """Most permutations of a test."""
    smallest_p: float
    """The smallest p that could have been counted; smaller ones are of a tail."""
    why_no_p: str = ""
    """Why there is no p."""

    @property
    def q(self) -> Floats:
        """p adjusted for the number of latents that were tested (Benjamini-Hochberg)."""
        return adjusted(self.p)

    @property
    def purity_q(self) -> Floats:
        """The p of the purity, adjusted in the same way."""
        return adjusted(self.purity_p)


def best_values(
    train: LabelledCodes, test: LabelledCodes, n_values: int, settings: BestValueSettings | None = None
) -> BestValues:
    """Choose the value of each latent on train, and measure it on test.

    The choice is by z against labels permuted by group (`group_scores.py`), not by AUROC, which favours rare values by
    noise. It is of a value whose images activate the latent more than others do, so z is positive.

    Args:
        train: where the value is chosen.
        test: where it is measured: images, and groups, that train does not have.
        n_values: number of values of the target.
        settings: how; None for the defaults.

    Raises: EmptyClass if fewer than two values have `min_count` images in both splits; ConfigError for codes of
        different numbers of latents.
    """
    settings = BestValueSettings() if settings is None else settings
    if train.codes.n_latents != test.codes.n_latents:
        raise ConfigError(f"codes of {train.codes.n_latents} latents in train and {test.codes.n_latents} in test.")
    counts = [np.bincount(part.labels, minlength=n_values) for part in (train, test)]
    eligible = (counts[0] >= settings.min_count) & (counts[1] >= settings.min_count)
    if eligible.sum() < 2:
        raise EmptyClass(
            f"{int(eligible.sum())} values have {settings.min_count} images in train and in test; a comparison needs "
            "two.",
            fix="another target, more images, or a smaller min_count",
        )
    z = group_z(train.codes, train.labels, train.groups, n_values)
    z = np.where(eligible, z, -np.inf)
    value = z.argmax(1).astype(np.int64)
    largest = z.max(1)
    value[(train.codes.n_active == 0) | (largest <= 0)] = -1
    codes, labels, n = test.codes, test.labels, test.codes.n_images
    top = codes.top_rows(settings.n_top)
    of_top = np.where(top >= 0, labels[np.maximum(top, 0)], -1)
    gains, n_active = rank_gains(codes), codes.n_active.astype(np.float64)
    weights = SparseWeights(test=codes.latent, image=codes.row, weight=gains, n_tests=codes.n_latents, n_images=n)
    tested = np.where(n_active > 0, value, -1)

    def area(sums: Floats, n_class: Floats, tests: Ints) -> Floats:
        return area_of_sums(sums, n_class, n_active[tests, None], n)

    found = permuted_p(weights, tested, labels, test.groups, area, settings.permutations)
    hit = labels[codes.row] == value[codes.latent]
    gain = weighted_counts(codes.latent, gains * hit, codes.n_latents)
    n_value = np.where(value >= 0, counts[1][np.maximum(value, 0)], 0).astype(np.float64)
    n_top = (top >= 0).sum(1)
    latent, place = np.nonzero(top >= 0)
    of_purity = SparseWeights(
        test=latent, image=top[latent, place], weight=1 / n_top[latent], n_tests=codes.n_latents, n_images=n
    )
    in_top = permuted_p(of_purity, tested, labels, test.groups, lambda sums, *_: sums, settings.permutations)
    return BestValues(
        value=value, z=np.where(value >= 0, largest, np.nan), n_values=int(eligible.sum()),
        purity=purity(of_top, value),
        entropy=normalised_entropy(of_top, n_values),
        auroc=np.where(n_active > 0, area_of_sums(gain, n_value, n_active, n), np.nan),
        precision=np.where(n_active > 0, average_precisions(codes, labels, value), np.nan), purity_p=in_top.p,
        p=found.p,
        prevalence=np.where(value >= 0, n_value / n, np.nan),
        chance_entropy=expected_entropy(counts[1], max(settings.n_top, 2)), n_permutations=found.n_permutations,
        smallest_p=found.smallest, why_no_p=found.why,
    )  # fmt: skip
