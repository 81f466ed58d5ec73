"""Permutation p-values of many latents at once, with more permutations for those that need them.

A statistic is a function of two numbers that follow from permuted labels: the sum of an image's weights over the images
of the latent's class, and the number of these images. AUROC, purity, and the gain of a logistic probe are of this form,
and so is the AUROC of a word; with sparse weights a permutation costs as much as there are activations.

Permutations are drawn until as many as `enough` reach the observed value, or up to `most` (Besag and Clifford 1991,
Sequential Monte Carlo p-values, Biometrika). A correction for thousands of latents needs p that no feasible number of
permutations can count: where none reaches the observed value, p is the tail of a gamma distribution with the mean,
variance and skewness of the permutations (Winkler et al. 2016, Faster permutation inference in brain imaging,
NeuroImage). Labels are permuted by group (`probes/group_permutation.py`).
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

    most: int = 2_000
    """Largest number of permutations; the smallest p that is counted is 1 / (most + 1)."""
    enough: int = 20
    """Permutations that reach the observed value, after which a test needs no further ones."""
    tail: bool = True
    """Whether p below that are from a gamma distribution; if not, none is below."""
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
    """The smallest p that could have been counted; 1 where the labels allow no other order."""
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
    moments = Moments.none(len(tests))
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
        moments.add(values - observed[:, None])
        moments = moments.take(~done)
        tests, observed, reached = tests[~done], observed[~done], running[~done, -1]
    found[tests] = (1 + reached) / (1 + n_drawn)
    rare = tests[reached == 0]
    if settings.tail and len(rare):
        step = _step(weights, groups)
        lower = _values(weights, rare, classes, labels[None], statistic, less=step[rare] / 2)[:, 0]
        gap = lower - observed[reached == 0]  # half a step below, as the sums are discrete
        found[rare] = np.minimum(found[rare], moments.take(reached == 0).tail(gap, n_drawn))
    return PermutedP(p=np.clip(found, floor, 1.0), n_permutations=n_drawn, smallest=max(1 / (1 + settings.most), floor))


@dataclass(kw_only=True, eq=False)
class Moments:
    """Sums of the first three powers of the values of tests, each less what was observed."""

    sums: Floats
    """(3, tests)."""

    @classmethod
    def none(cls, n_tests: int) -> "Moments":
        """Return the sums over no value."""
        return cls(sums=np.zeros((3, n_tests)))

    def add(self, values: Floats) -> None:
        """Add values, (tests, permutations)."""
        self.sums = self.sums + np.stack([values.sum(1), (values**2).sum(1), (values**3).sum(1)])

    def take(self, kept: NDArray[np.bool_]) -> "Moments":
        """Return those of some tests."""
        return Moments(sums=self.sums[:, kept])

    def tail(self, x: Floats, n: int) -> Floats:
        """Return the probability of values of at least x under a gamma distribution with these moments, (tests,).

        A normal distribution takes its place for a negative skewness, whose gamma distribution would end at some value
        and make larger ones impossible.

        Args:
            x: (tests,).
            n: number of values that were added.
        """
        from scipy.stats import gamma, norm  # heavy

        mean, square, cube = self.sums / n
        deviation = np.sqrt(np.maximum(square - mean**2, 0.0))
        known = deviation > 0
        z = np.where(known, (x - mean) / np.where(known, deviation, 1.0), -np.inf)
        skew = np.where(known, (cube - 3 * mean * square + 2 * mean**3) / np.where(known, deviation, 1.0) ** 3, 0.0)
        bent = skew > 0.02
        shape = 4 / np.where(bent, skew, 1.0) ** 2
        of_gamma = gamma.sf(shape + z * np.sqrt(shape), shape)
        return np.maximum(np.where(bent, of_gamma, norm.sf(z)), 1e-300)


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


def _step(weights: SparseWeights, groups: Groups) -> Floats:
    """Return by how much a sum changes when the class gains a group, in the mean over the active ones, (tests,)."""
    total = np.bincount(weights.test, weights=weights.weight, minlength=weights.n_tests)
    pairs = np.unique(weights.test * groups.n + groups.ids[weights.image])
    n_groups = np.bincount(pairs // groups.n, minlength=weights.n_tests)
    return np.maximum(total, 0.0) / np.maximum(n_groups, 1)


def _values(
    weights: SparseWeights, tests: Ints, classes: Ints, labels: Ints, statistic: OfSums, less: Floats | None = None
) -> Floats:
    """Return the statistic of some tests for each row of labels, (tests, rows); `less` is taken from the sums."""
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
            if less is not None:
                sums = sums - less[part, None]
            found[part] = statistic(sums, np.broadcast_to(n_members, sums.shape), tests[part])
    return found
