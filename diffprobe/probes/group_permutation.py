"""Labels permuted by group: for null distributions over one set of predictions and for the control `shuffled_labels`.

NumPy only; who permutes brings the random numbers.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.groups import Groups, require_groups


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

    Args:
        labels: class of each sample, integers.
        clusters: group of each sample, by name or numbered.

    Raises: ConfigError for other numbers of samples.

    >>> permutation = GroupPermutation(np.array([0, 0, 1]), ["cat", "cat", "dog"])
    >>> permutation.arrange(np.array([[1, 0]]), np.zeros((1, 0))).tolist()  # the labels of both groups, exchanged
    [[1, 1, 0]]
    """

    def __init__(self, labels: NDArray[np.int64], clusters: Sequence[Hashable] | Groups) -> None:
        n = len(clusters.ids if isinstance(clusters, Groups) else clusters)
        if len(labels) != n:
            raise ConfigError(f"permutation: {len(labels)} labels for groups of {n} samples.")
        self.labels = np.asarray(labels, dtype=np.int64)
        groups = clusters if isinstance(clusters, Groups) else Groups.of(clusters, what="permutation", at_least=1)
        first = self.labels[np.unique(groups.ids, return_index=True)[1]]
        varies = np.zeros(groups.n, dtype=bool)
        varies[groups.ids[self.labels != first[groups.ids]]] = True
        self._whole = np.flatnonzero(~varies)
        self._labels_of_whole = first[self._whole]
        places = np.full(groups.n, -1)
        places[self._whole] = np.arange(len(self._whole))
        self._place = places[groups.ids]  # of each sample, into the groups that are permuted whole
        self._inside = np.flatnonzero(varies[groups.ids])
        self._inside = self._inside[np.argsort(groups.ids[self._inside], kind="stable")]
        self._inside_group = groups.ids[self._inside]
        self.n_groups, self.n_within, self.n_between = groups.n, int(varies.sum()), len(self._whole)
        self.log_distinct = _log_arrangements(self._labels_of_whole, np.zeros_like(self._labels_of_whole))
        self.log_distinct += _log_arrangements(self.labels[self._inside], self._inside_group)

    def require_several(self) -> None:
        """Check that not all permutations are alike.

        Raises: TooFewGroups for one group with one label; EmptyClass if all samples have one label.
        """
        if not self.n_within:
            require_groups(self.n_groups, len(self.labels), what="permutation")
        if self.log_distinct < math.log(1.5):
            raise EmptyClass(
                f"permutation: {self.n_groups} groups with {len(np.unique(self.labels))} label; all permutations are "
                "alike.",
                "the estimate itself stands, without a null distribution",
                fix="a target with two classes in different groups, or within one",
            )

    @property
    def n_inside(self) -> int:
        """Samples that are permuted within their group."""
        return len(self._inside)

    @property
    def n_distinct(self) -> float:
        """How many different arrangements of the labels there are; infinite beyond what a float holds."""
        return math.exp(self.log_distinct) if self.log_distinct < 700 else math.inf

    def arrange(self, between: NDArray[np.int64], within: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return permuted labels, shape (n, samples).

        Args:
            between: orders of the groups of one label, shape (n, n_between); each row is a permutation.
            within: numbers in [0, 1) by which the samples of a group of several labels are sorted, shape (n, n_inside).
        """
        found = np.broadcast_to(self.labels, (len(between), len(self.labels))).copy()
        if self.n_between:
            rows = np.flatnonzero(self._place >= 0)
            found[:, rows] = self._labels_of_whole[between][:, self._place[rows]]
        if self.n_within:
            keys = self._inside_group + within  # sorts within groups, at random
            found[:, self._inside] = self.labels[self._inside][np.argsort(keys, axis=1)]
        return found

    def draw(self, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return labels permuted at random, shape (n, samples)."""
        order = np.broadcast_to(np.arange(self.n_between), (n, self.n_between))
        between = generator.permuted(order, axis=1) if self.n_between else order
        return self.arrange(between, generator.random((n, self.n_inside)))


def _log_arrangements(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> float:
    """Return the logarithm of the number of different orders of labels within groups."""
    sizes = np.unique(groups, return_counts=True)[1]
    counts = np.unique(groups * (labels.max(initial=0) + 1) + labels, return_counts=True)[1]
    return _log_factorials(sizes) - _log_factorials(counts)


def _log_factorials(counts: NDArray[np.int64]) -> float:
    """Return the sum of the logarithms of the factorials of counts."""
    values, times = np.unique(counts, return_counts=True)
    return sum(n * math.lgamma(value + 1) for value, n in zip(values.tolist(), times.tolist(), strict=True))
