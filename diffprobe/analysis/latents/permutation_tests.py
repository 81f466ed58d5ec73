"""Permutation p-values of many latents at once, with more permutations for those that need them.

A statistic is a function of two numbers that follow from permuted labels: the sum of an image's weights over the images
of the latent's class, and the number of these images. AUROC, purity, and the gain of a logistic probe are of this form,
and so is the AUROC of a word; with sparse weights a permutation costs as much as there are activations.

Permutations are drawn until as many as `enough` reach the observed value, or up to `most` (Besag and Clifford 1991,
Sequential Monte Carlo p-values, Biometrika): a correction for thousands of latents needs small p for a few of them, and
a rough p for the others. Labels are permuted by group (`probes/group_permutation.py`).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass, TooFewGroups
from diffprobe.core.groups import Groups
from diffprobe.probes.group_permutation import GroupPermutation

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
OfSums = Callable[[Floats, Floats, Ints], Floats]
"""Takes sums of weights (tests, permutations), numbers of images of the class, of the same shape, and the numbers of
the tests, (tests,). Returns the statistic of each test and permutation; large values are evidence against chance."""
_BLOCK = 4_000_000
"""Largest number of labels or sums that are held at once."""
_FIRST = 200
"""Permutations after which the tests are looked at for the first time."""


@dataclass(frozen=True, kw_only=True)
class PermutationSettings:
    """How many permutations are drawn."""

    most: int = 10_000
    """Largest number of permutations; the smallest p is 1 / (most + 1)."""
    enough: int = 20
    """Permutations that reach the observed value, after which a test needs no further ones."""
    seed: int = 0
    """Seed of the permutations."""

    def __post_init__(self) -> None:
        if self.most < 19 or self.enough < 1 or self.seed < 0:
            raise ConfigError(
                f"permutations: most={self.most}, enough={self.enough}, seed={self.seed}.",
                "allowed: most of at least 19, enough of at least 1, seed of at least 0",
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class PermutedP:
    """p-values of tests."""

    p: Floats
    """One-sided p of each test, NaN where the statistic is not defined, (tests,)."""
    n_permutations: int
    """Largest number of permutations that a test had."""
    smallest: float
    """The smallest p that could have been; 1 where the labels allow no other order."""
    why: str = ""
    """Why there is no p, where no label can be permuted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseWeights:
    """Weights of images in tests, where most weights are 0.

    Attributes:
        test: test of each weight, ascending, int64 (weights,).
        image: image of each weight, int64 (weights,).
        weight: the weights, (weights,).
        n_tests: number of tests.
        n_images: number of images.
    """

    test: Ints
    image: Ints
    weight: Floats
    n_tests: int
    n_images: int


def permuted_p(
    weights: SparseWeights, classes: Ints, labels: Ints, groups: Groups, statistic: OfSums,
    settings: PermutationSettings | None,
) -> PermutedP:  # fmt: skip
    """Return the p of each test against labels permuted by group.

    Args:
        weights: weight of each image in each test.
        classes: class of each test, -1 for none, (tests,).
        labels: class of each image, (images,).
        groups: group of each image.
        statistic: the statistic of sums and numbers of images.
        settings: how many permutations; None for no test.

    Raises: ConfigError for other numbers of labels.
    """
    if len(labels) != weights.n_images or len(groups.ids) != weights.n_images or len(classes) != weights.n_tests:
        raise ConfigError(
            f"permutation tests: {len(labels)} labels and {len(groups.ids)} groups for {weights.n_images} images, "
            f"{len(classes)} classes for {weights.n_tests} tests."
        )
    found = np.full(weights.n_tests, np.nan)
    if settings is None:
        return PermutedP(p=found, n_permutations=0, smallest=1.0, why="no permutations were asked for")
    permutation = GroupPermutation(labels, groups)
    try:
        permutation.require_several()
    except (EmptyClass, TooFewGroups) as error:
        return PermutedP(p=found, n_permutations=0, smallest=1.0, why=error.what)
    tests = np.flatnonzero(classes >= 0)
    observed = _values(weights, tests, classes, labels[None], statistic)[:, 0]
    tests, observed = tests[~np.isnan(observed)], observed[~np.isnan(observed)]
    floor = 1 / permutation.n_distinct
    generator = np.random.default_rng(settings.seed)
    reached, n_drawn, n_next = np.zeros(len(tests), dtype=np.int64), 0, _FIRST
    at_once = max(1, _BLOCK // max(len(labels), 1))
    while n_drawn < settings.most and len(tests):
        n = min(n_next, settings.most - n_drawn, at_once)
        drawn = permutation.draw(n, generator)
        values = _values(weights, tests, classes, drawn, statistic)
        tolerance = 1e-12 * np.maximum(1.0, np.abs(observed))[:, None]  # sums in another order
        running = reached[:, None] + (values >= observed[:, None] - tolerance).cumsum(1)
        done = running[:, -1] >= settings.enough
        at = (running[done] >= settings.enough).argmax(1)
        found[tests[done]] = settings.enough / (n_drawn + at + 1)
        n_drawn, n_next = n_drawn + n, 2 * n_next
        tests, observed, reached = tests[~done], observed[~done], running[~done, -1]
    found[tests] = (1 + reached) / (1 + n_drawn)
    return PermutedP(p=np.clip(found, floor, 1.0), n_permutations=n_drawn, smallest=max(1 / (1 + settings.most), floor))


def adjusted(p: Floats) -> Floats:
    """Return p-values adjusted by Benjamini and Hochberg for the number of those that are not NaN, (tests,).

    >>> adjusted(np.array([0.01, np.nan, 0.5])).tolist()
    [0.02, nan, 0.5]
    """
    from diffprobe.analysis.statistics import benjamini_hochberg

    found, known = np.full(len(p), np.nan), ~np.isnan(p)
    if known.any():
        found[known] = benjamini_hochberg(p[known].tolist()).adjusted
    return found


def _values(weights: SparseWeights, tests: Ints, classes: Ints, labels: Ints, statistic: OfSums) -> Floats:
    """Return the statistic of some tests for each row of labels, (tests, rows)."""
    from scipy.sparse import csr_array  # heavy

    starts = np.searchsorted(weights.test, np.arange(weights.n_tests + 1))
    matrix = csr_array((weights.weight, weights.image, starts), shape=(weights.n_tests, weights.n_images))
    found = np.empty((len(tests), len(labels)))
    for class_id in np.unique(classes[tests]).tolist():
        of_class = np.flatnonzero(classes[tests] == class_id)
        block = max(1, _BLOCK // max(len(labels), 1))
        member = np.ascontiguousarray((labels == class_id).T, dtype=np.float64)  # (images, rows)
        n_members = member.sum(0)
        for start in range(0, len(of_class), block):
            part = of_class[start : start + block]
            sums = np.asarray(matrix[tests[part]] @ member)
            found[part] = statistic(sums, np.broadcast_to(n_members, sums.shape), tests[part])
    return found
