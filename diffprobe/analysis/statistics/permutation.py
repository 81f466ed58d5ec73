"""Nulls as distributions: labels permuted so that the structure of groups stays, with quantile, p and smallest p."""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.group_permutation import GroupPermutation
from diffprobe.probes.null_distribution import Null

LabelStatistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Takes labels (permutations, samples) and returns a number for each row, NaN where it is not defined."""
_BLOCK = 4_000_000
"""Largest number of labels that are held at once."""


def permutation_null(
    statistic: LabelStatistic,
    labels: NDArray[np.int64],
    clusters: Sequence[Hashable],
    *,
    n_permutations: int = 1000,
    seed: int = 0,
    higher_is_better: bool = True,
) -> Null:
    """Return the distribution of a statistic over permutations of the labels that keep the groups.

    Args:
        statistic: takes labels (permutations, samples), returns a number for each row, NaN where not defined.
        labels: true class of each sample, integers.
        clusters: the group of each sample.
        n_permutations: permutations drawn, at random with repeats.
        seed: seed of the permutations.
        higher_is_better: whether large values speak against the null hypothesis.

    Raises: TooFewGroups for one group with one label; EmptyClass if all permutations are alike, or if the statistic is
        undefined for the true labels or for more than half of the permutations; ConfigError for no permutation or
        other numbers of samples.

    >>> labels = np.array([0, 0, 1, 1])
    >>> null = permutation_null(lambda y: (y == labels).mean(1), labels, range(4))
    >>> round(null.smallest_p, 3), null.p < 0.25  # six different orders
    (0.167, True)
    """
    permutations = LabelPermutations(labels, clusters, n=n_permutations, seed=seed)
    return permutations.null(statistic, higher_is_better=higher_is_better)


class LabelPermutations:
    """Permutations of labels that keep the groups, for the null distributions of many statistics of the same labels.

    They are drawn once where they fit into memory, else again for each statistic, with the same result.

    Args: as `permutation_null`.
    Raises: TooFewGroups for one group with one label; EmptyClass if all permutations are alike; ConfigError.
    """

    def __init__(self, labels: NDArray[np.int64], clusters: Sequence[Hashable], *, n: int, seed: int = 0) -> None:
        if n < 1:
            raise ConfigError(f"permutation: n_permutations={n} must be at least 1.")
        self._permutation = GroupPermutation(labels, clusters)
        self._permutation.require_several()
        self._n, self._seed = n, seed
        self._drawn: list[NDArray[np.int64]] = []

    def null(self, statistic: LabelStatistic, *, higher_is_better: bool = True) -> Null:
        """Return the distribution of a statistic over the permutations.

        Raises: EmptyClass if it is undefined for the true labels or for more than half of the permutations.
        """
        permutation, n = self._permutation, self._n
        observed = float(statistic(permutation.labels[None])[0])
        if math.isnan(observed):
            raise EmptyClass("permutation: the statistic is not defined for the true labels.")
        values = np.concatenate([statistic(labels) for labels in self._blocks()])
        defined = values[~np.isnan(values)]
        if len(defined) * 2 < n:
            raise EmptyClass(
                f"permutation: the statistic is not defined in {n - len(defined)} of {n} draws.",
                "the estimate itself stands, without a null distribution",
            )
        return Null(
            observed=observed, values=defined, n_permutations=n, n_distinct=permutation.n_distinct,
            n_between=permutation.n_between, n_within=permutation.n_within, higher_is_better=higher_is_better,
        )  # fmt: skip

    def _blocks(self) -> Iterator[NDArray[np.int64]]:
        if self._drawn:
            yield from self._drawn
            return
        generator = np.random.default_rng(self._seed)
        block = max(1, _BLOCK // len(self._permutation.labels))
        for start in range(0, self._n, block):
            drawn = self._permutation.draw(min(block, self._n - start), generator)
            if self._n <= block:
                self._drawn = [drawn]
            yield drawn
