"""Nulls as distributions: labels permuted so that the structure of groups stays, with quantile, p and smallest p."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics.groups import Groups
from diffprobe.core.errors import ConfigError, EmptyClass

LabelStatistic = Callable[[NDArray[np.int64]], NDArray[np.float64]]
"""Takes labels (permutations, samples) and returns a number for each row, NaN where it is not defined."""
_BLOCK = 4_000_000
"""Largest number of labels that are held at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Null:
    """What a statistic is when labels have nothing to do with the predictions, beside what was observed."""

    observed: float
    """The statistic of the true labels."""
    values: NDArray[np.float64]
    """The statistic of each permutation in which it is defined."""
    n_permutations: int
    """Permutations drawn."""
    n_distinct: float
    """How many different permutations the groups allow; infinite where they exceed what a float holds."""
    n_between: int
    """Groups whose label is constant, permuted between each other."""
    n_within: int
    """Groups in which labels vary and are permuted."""
    higher_is_better: bool = True
    """Which side counts as extreme."""

    @property
    def n_undefined(self) -> int:
        """Permutations in which the statistic is not defined; they are left out."""
        return self.n_permutations - len(self.values)

    @property
    def smallest_p(self) -> float:
        """The smallest p that could have been: bounded by the permutations drawn and by those that exist."""
        return max(1 / (1 + len(self.values)), 1 / self.n_distinct)

    @property
    def p(self) -> float:
        """(1 + number of null values at least as extreme as observed) / (1 + number of null values); one-sided.

        Where fewer different permutations exist than were drawn, not below one over their number.
        """
        tolerance = 1e-12 * max(1.0, abs(self.observed))  # sums in another order
        gain = self.values - self.observed if self.higher_is_better else self.observed - self.values
        return max((1 + int((gain >= -tolerance).sum())) / (1 + len(self.values)), self.smallest_p)

    @property
    def quantile(self) -> float:
        """The share of null values below the observed one, ties counted by half: 0..1."""
        return float(((self.values < self.observed) + 0.5 * (self.values == self.observed)).mean())

    @property
    def mean(self) -> float:
        """The mean of the null distribution."""
        return float(self.values.mean())

    def percentiles(self, *shares: float) -> list[float]:
        """Return percentiles of the null distribution, for shares in 0..1."""
        return [float(value) for value in np.quantile(self.values, shares)]


class GroupPermutation:
    """Permutes labels so that the structure of groups stays: which samples belong together, and how alike they are.

    - A group whose samples share one label (a family of one category) keeps one label: labels are permuted between
      whole groups. Permuting single samples would claim as many independent labels as there are samples: the spread
      would be far too small.
    - A group with several labels (one drawing in several styles) keeps its labels: they are permuted within the group.
      Permuting them between groups would break what the design balances and count what groups differ in as chance.
    - A set with both kinds has both: groups of one label among themselves, the others within.

    What is permuted is exchangeable if labels have nothing to do with predictions; where labels vary within groups, the
    null distribution keeps how the share of a label differs between groups, so that only what is read
    within groups counts.

    Args:
        labels: class of each sample, integers.
        clusters: group of each sample.

    Raises: TooFewGroups for one group with one label; EmptyClass if all permutations are alike; ConfigError for other
        numbers of samples.
    """

    def __init__(self, labels: NDArray[np.int64], clusters: Sequence[Hashable]) -> None:
        if len(labels) != len(clusters):
            raise ConfigError(f"permutation: {len(labels)} labels for groups of {len(clusters)} samples.")
        self.labels = np.asarray(labels, dtype=np.int64)
        groups = Groups.of(clusters, what="permutation", at_least=1)
        first = self.labels[np.unique(groups.ids, return_index=True)[1]]
        varies = np.zeros(groups.n, dtype=bool)
        varies[groups.ids[self.labels != first[groups.ids]]] = True
        if not varies.any():
            groups = Groups.of(clusters, what="permutation")
        self._whole = np.flatnonzero(~varies)
        self._labels_of_whole = first[self._whole]
        places = np.full(groups.n, -1)
        places[self._whole] = np.arange(len(self._whole))
        self._place = places[groups.ids]  # of each sample, into the groups that are permuted whole
        self._inside = np.flatnonzero(varies[groups.ids])
        self._inside = self._inside[np.argsort(groups.ids[self._inside], kind="stable")]
        self._inside_group = groups.ids[self._inside].astype(np.float64)
        self.n_groups, self.n_within, self.n_between = groups.n, int(varies.sum()), len(self._whole)
        self.log_distinct = _log_arrangements(self._labels_of_whole) + sum(
            _log_arrangements(self.labels[rows]) for rows, moves in zip(groups.members(), varies, strict=True) if moves
        )
        if self.log_distinct < math.log(1.5):
            raise EmptyClass(
                f"permutation: {groups.n} groups with {len(np.unique(self.labels))} label; all permutations are alike.",
                "the estimate itself stands, without a null distribution",
                fix="a target with two classes in different groups, or within one",
            )

    @property
    def n_distinct(self) -> float:
        """How many different arrangements of the labels there are."""
        return math.exp(self.log_distinct) if self.log_distinct < 700 else math.inf

    def draw(self, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return permuted labels, shape (n, samples)."""
        found = np.broadcast_to(self.labels, (n, len(self.labels))).copy()
        if self.n_between:
            moved = generator.permuted(np.broadcast_to(self._labels_of_whole, (n, self.n_between)), axis=1)
            rows = np.flatnonzero(self._place >= 0)
            found[:, rows] = moved[:, self._place[rows]]
        if self.n_within:
            keys = self._inside_group + generator.random((n, len(self._inside)))  # sorts within groups, at random
            found[:, self._inside] = self.labels[self._inside][np.argsort(keys, axis=1)]
        return found


def _log_arrangements(labels: NDArray[np.int64]) -> float:
    """Return the logarithm of the number of different orders of labels."""
    counts = np.unique(labels, return_counts=True)[1]
    return math.lgamma(len(labels) + 1) - sum(math.lgamma(count + 1) for count in counts.tolist())


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

    Raises: as `GroupPermutation`; EmptyClass if the statistic is undefined for the true labels or for more than half of
        the permutations; ConfigError for no permutation.

    >>> labels = np.array([0, 0, 1, 1])
    >>> null = permutation_null(lambda y: (y == labels).mean(1), labels, range(4))
    >>> round(null.smallest_p, 3), null.p < 0.25  # six different orders
    (0.167, True)
    """
    if n_permutations < 1:
        raise ConfigError(f"permutation: n_permutations={n_permutations} must be at least 1.")
    permutation = GroupPermutation(labels, clusters)
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
