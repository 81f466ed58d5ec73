"""sigma_label, purity, entropy and AUROC of ranked latents on one split, each with what it is by chance.

Two kinds of chance: the exact expectation for independent labels of the same class frequencies, and the distribution
over labels that are permuted by group, so that variants of one drawing do not count as independent images
(`probes/group_permutation.py`). p is of the latter.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.label_purity import (
    OneVersusRest,
    expected_entropy,
    expected_largest_share,
    normalised_entropy,
    purity,
    top_classes,
)
from diffprobe.analysis.label_spread import chance_spread, label_spread, mean_of_first, renumbered_spread
from diffprobe.core.errors import ConfigError, EmptyClass, TooFewGroups
from diffprobe.core.groups import Groups
from diffprobe.probes.group_permutation import GroupPermutation
from diffprobe.probes.null_distribution import Null

_Measure = Callable[[NDArray[np.int64]], dict[str, NDArray[np.float64]]]
"""Takes the label of each image, and returns each measure of each latent."""
SIGMA = "sigma_label"
HIGHER_IS_BETTER = {SIGMA: False, "purity": True, "entropy": False, "auroc": True}
"""Name of each measure -> whether a purer latent has a larger value."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitImages:
    """The images of a split, and what ranked latents do on them."""

    label: NDArray[np.int64]
    """Class of each image, int64 (images,), none missing."""
    groups: Groups
    """Group of each image."""
    top: NDArray[np.int64]
    """Position of the top images of each latent, the most active first, int64 (latents, n_top); -1 for none."""
    classes: NDArray[np.int64] | None = None
    """Class of each latent, chosen on another split; None on the split where it is chosen."""
    activations: NDArray[np.float32] | None = None
    """Activation of each latent on each image, (images, latents), for the AUROC; replaced by ranks."""


@dataclass(frozen=True, kw_only=True)
class ChanceSettings:
    """How chance is drawn."""

    n_permutations: int = 1000
    """Permutations of the labels."""
    n_renumberings: int = 1000
    """Random numberings of the classes."""
    seed: int = 0
    """Seed of both."""


@dataclass(frozen=True, kw_only=True)
class LabelScore:
    """A measure, averaged over the first latents of a ranking."""

    measure: str
    """A name of `HIGHER_IS_BETTER`."""
    top: int
    """Number of latents that was asked for."""
    n_latents: int
    """Number of latents in the mean: those that exist and for which the measure is defined."""
    value: float
    """The mean."""
    chance: float
    """The expectation for independent labels of the class frequencies of the split."""
    null: Null | None
    """The distribution over permutations of the labels by group; None if labels cannot be permuted."""
    no_null: str = ""
    """Reason why there is none."""
    renumbered: tuple[float, float, float] | None = None
    """sigma_label: mean, 2.5th and 97.5th percentile over random numberings of the classes."""


def label_scores(images: SplitImages, n_classes: int, tops: Sequence[int], chance: ChanceSettings) -> list[LabelScore]:
    """Score ranked latents on a split.

    Args:
        images: the split; with `classes`, purity is that of these classes, and without, of the most frequent ones
            (in-sample). AUROC needs `classes` and `activations`.
        n_classes: number of classes of the data set.
        tops: numbers of latents to average over, ascending.
        chance: how chance is drawn.
    Returns: by measure, then by number of latents. A mean for which no latent has a value is left out.
    Raises: EmptyClass for images of one class; ConfigError for an empty `tops`.
    """
    if not tops:
        raise ConfigError("label scores: tops is empty; at least one number of latents is needed.")
    present = np.unique(images.label)
    if len(present) < 2:
        raise EmptyClass(
            f"{len(images.label):,} images have {len(present)} class; whether a latent is pure needs at least two.",
            fix="a target or split with two classes or more",
        )
    rank_test = None
    if images.activations is not None and images.classes is not None:
        rank_test = OneVersusRest(images.activations, images.classes)

    def measure(label: NDArray[np.int64]) -> dict[str, NDArray[np.float64]]:
        of_top = np.where(images.top >= 0, label[images.top], -1)
        classes = top_classes(of_top) if images.classes is None else images.classes
        found = {SIGMA: label_spread(of_top), "purity": purity(of_top, classes)}
        found["entropy"] = normalised_entropy(of_top, n_classes)
        if rank_test is not None:
            found["auroc"] = rank_test.score(label)
        return found

    observed = measure(images.label)
    drawn, permutation, no_null = _permuted(images, measure, tops, chance)
    renumbered = _renumbered(images, n_classes, tops, chance)
    expected = _independent(images, n_classes)
    scores = []
    for name, values in observed.items():
        means, counts = mean_of_first(values, tops)
        chances, _ = mean_of_first(np.where(np.isnan(values), np.nan, expected[name]), tops)
        for i, top in enumerate(tops):
            if counts[i] == 0:
                continue
            null = None
            if permutation is not None:
                column = drawn[name][:, i]
                null = Null(
                    observed=float(means[i]), values=column[~np.isnan(column)], n_permutations=chance.n_permutations,
                    n_distinct=permutation.n_distinct, n_between=permutation.n_between, n_within=permutation.n_within,
                    higher_is_better=HIGHER_IS_BETTER[name],
                )  # fmt: skip
                null = null if len(null.values) else None
            scores.append(
                LabelScore(
                    measure=name,
                    top=top,
                    n_latents=int(counts[i]),
                    value=float(means[i]),
                    chance=float(chances[i]),
                    null=null,
                    no_null=no_null,
                    renumbered=tuple(renumbered[:, i].tolist()) if name == SIGMA else None,
                )  # fmt: skip
            )
    return scores


def _permuted(
    images: SplitImages, measure: _Measure, tops: Sequence[int], chance: ChanceSettings
) -> tuple[dict[str, NDArray[np.float64]], GroupPermutation | None, str]:
    """Return the means of each measure over permutations, (permutations, tops), or the reason why there are none."""
    permutation = GroupPermutation(images.label, images.groups)
    try:
        permutation.require_several()
    except (EmptyClass, TooFewGroups) as error:
        return {}, None, error.what
    generator = np.random.default_rng([chance.seed, 0])
    drawn: dict[str, list[NDArray[np.float64]]] = {}
    for _ in range(chance.n_permutations):
        (label,) = permutation.draw(1, generator)  # one at a time: a permutation has as many labels as there are images
        for name, values in measure(label).items():
            drawn.setdefault(name, []).append(mean_of_first(values, tops)[0])
    return {name: np.stack(values) for name, values in drawn.items()}, permutation, ""


def _renumbered(
    images: SplitImages, n_classes: int, tops: Sequence[int], chance: ChanceSettings
) -> NDArray[np.float64]:
    """Return mean, 2.5th and 97.5th percentile of sigma_label over numberings of the classes, (3, tops)."""
    of_top = np.where(images.top >= 0, images.label[images.top], -1)
    generator = np.random.default_rng([chance.seed, 1])
    means, _ = mean_of_first(renumbered_spread(of_top, n_classes, chance.n_renumberings, generator), tops)
    return np.vstack([means.mean(0), np.quantile(means, [0.025, 0.975], axis=0)])


def _independent(images: SplitImages, n_classes: int) -> dict[str, NDArray[np.float64]]:
    """Return the expectation of each measure of each latent for independent labels, given how many images it has."""
    frequencies = np.bincount(images.label, minlength=n_classes)
    sizes = (images.top >= 0).sum(1)

    def by_size(expected: Callable[[NDArray[np.int64], int], float], least: int) -> NDArray[np.float64]:
        of_size = {n: expected(frequencies, n) for n in np.unique(sizes[sizes >= least]).tolist()}
        return np.array([of_size.get(n, np.nan) for n in sizes.tolist()])

    found = {SIGMA: by_size(chance_spread, 2), "entropy": by_size(expected_entropy, 2)}
    if images.classes is None:
        found["purity"] = by_size(expected_largest_share, 1)
    else:
        found["purity"] = np.where(images.classes >= 0, frequencies[images.classes] / len(images.label), np.nan)
    return {**found, "auroc": np.full(len(sizes), 0.5)}
