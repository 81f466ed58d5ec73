"""Nulls as distributions: labels permuted so that the structure of groups stays, with quantile, p and smallest p."""

import math
from collections.abc import Callable, Hashable, Sequence

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
    if n_permutations < 1:
        raise ConfigError(f"permutation: n_permutations={n_permutations} must be at least 1.")
    permutation = GroupPermutation(labels, clusters)
    permutation.require_several()
    observed = float(statistic(permutation.labels[None])[0])
    if math.isnan(observed):
        raise EmptyClass("permutation: the statistic is not defined for the true labels.")
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(permutation.labels))
    sizes = [min(block, n_permutations - start) for start in range(0, n_permutations, block)]
    values = np.concatenate([statistic(permutation.draw(size, generator)) for size in sizes])
    defined = values[~np.isnan(values)]
    if len(defined) * 2 < n_permutations:
        raise EmptyClass(
            f"permutation: the statistic is not defined in {n_permutations - len(defined)} of {n_permutations} draws.",
            "the estimate itself stands, without a null distribution",
        )
    return Null(
        observed=observed, values=defined, n_permutations=n_permutations, n_distinct=permutation.n_distinct,
        n_between=permutation.n_between, n_within=permutation.n_within, higher_is_better=higher_is_better,
    )  # fmt: skip
