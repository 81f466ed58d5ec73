"""Grouped, class-stratified folds for cross-validation: whole groups in a fold, independent of the order of samples.

A fold depends on the names of the groups, their labels and the seed. NumPy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass, SplitLeak
from diffprobe.shards.hash_split import hash_fraction

_SHOWN = 5
"""Largest number of names in a message."""


@dataclass(frozen=True)
class Folds:
    """The fold of each sample, and what the groups do not allow to measure."""

    fold: NDArray[np.int64]
    """Fold of each sample, from 0; -1 for samples without a label."""
    n_folds: int
    """Number of folds."""
    n_groups: int
    """Number of groups that have a labelled sample."""
    single_group_classes: tuple[int, ...]
    """Classes whose samples are all of one group: no fold can both learn and score them. They are left out of the
    cross-validated loss, and are learned by the refit."""


def grouped_folds(groups: Sequence[str], labels: NDArray[np.int64], *, n_folds: int, seed: int = 0) -> Folds:
    """Assign whole groups to folds so that each fold has about the same number of samples of each class.

    Groups are placed one after the other, the largest first and equal ones in the order of a hash of seed and name:
    each goes to the fold in which it leaves the smallest sum over classes and folds of squared class shares.

    Args:
        groups: name of the group of each sample.
        labels: class ids from 0, -1 for none; int64 (samples).
        n_folds: number of folds, at least 2.
        seed: seed of the order of equal groups.

    Raises: ConfigError for fewer than 2 folds, for inputs of different lengths, and for fewer groups than folds;
        EmptyClass if fewer than 2 classes have a sample, or if a fold would learn from fewer than 2.

    >>> grouped_folds(["a", "a", "b", "c", "d"], np.array([0, 1, 0, 1, 0]), n_folds=2).n_groups
    4
    """
    if n_folds < 2:
        raise ConfigError(f"folds={n_folds}: cross-validation needs at least 2 folds.")
    if len(groups) != len(labels):
        raise ConfigError(f"{len(groups)} groups for {len(labels)} labels.")
    known = np.flatnonzero(labels >= 0)
    n_classes = len(np.unique(labels[known]))
    if n_classes < 2:
        raise EmptyClass(f"a classifier needs samples of at least 2 classes, got {n_classes}.")
    names, member = np.unique(np.array([groups[i] for i in known.tolist()]), return_inverse=True)
    _require_groups(names.tolist(), n_folds)
    counts = np.zeros((len(names), int(labels.max()) + 1))
    np.add.at(counts, (member, labels[known]), 1)
    fold_of_group = _place(names.tolist(), counts, n_folds, seed)
    fold = np.full(len(labels), -1, dtype=np.int64)
    fold[known] = fold_of_group[member]
    _require_classes(fold, labels, n_folds)
    single = np.flatnonzero((counts > 0).sum(0) == 1)
    return Folds(fold, n_folds, len(names), tuple(int(k) for k in single))


def unlabelled_folds(groups: Sequence[str], *, n_folds: int, seed: int = 0) -> NDArray[np.int64]:
    """Assign whole groups to folds of about equally many samples, for a target that has no classes.

    Args:
        groups, n_folds, seed: as `grouped_folds`.

    Returns: the fold of each sample, int64 (samples).
    Raises: ConfigError for fewer than 2 folds, and for fewer groups than folds.

    >>> folds = unlabelled_folds(["a", "a", "b", "c"], n_folds=2)
    >>> int(folds[0]) == int(folds[1]) != int(folds[2]) == int(folds[3])
    True
    """
    if n_folds < 2:
        raise ConfigError(f"folds={n_folds}: cross-validation needs at least 2 folds.")
    names, member = np.unique(np.array(groups), return_inverse=True)
    _require_groups(names.tolist(), n_folds)
    counts = np.bincount(member, minlength=len(names))[:, None].astype(np.float64)
    found: NDArray[np.int64] = _place(names.tolist(), counts, n_folds, seed)[member]
    return found


def _require_groups(names: Sequence[str], n_folds: int) -> None:
    if len(names) < n_folds:
        raise ConfigError(
            f"{len(names)} groups for {n_folds} folds: a fold needs at least one whole group.",
            f"groups: {_listed(names)}",
            *([f"what can still be done: up to {len(names)} folds"] if len(names) >= 2 else []),
            fix=f"folds={len(names)}" if len(names) >= 2 else "a group attribute with more values, or group=sample",
        )


def _place(names: Sequence[str], counts: NDArray[np.float64], n_folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of each group."""
    sizes, share = counts.sum(1), counts / np.maximum(counts.sum(0), 1)
    hashes = [hash_fraction(f"fold|{seed}", name) for name in names]
    order = sorted(range(len(names)), key=lambda i: (-sizes[i], hashes[i], names[i]))
    total, filled = np.zeros((n_folds, counts.shape[1])), np.zeros(n_folds)
    placed = np.zeros(len(names), dtype=np.int64)
    for left, i in zip(range(len(order), 0, -1), order, strict=True):
        # the change of the sum of squares when a group of these shares is added to each fold
        cost = 2 * total @ share[i]
        empty = np.flatnonzero(filled == 0)
        allowed = empty if left <= len(empty) else np.arange(n_folds)
        best = allowed[np.lexsort((filled[allowed], np.round(cost[allowed], 12)))[0]]
        total[best] += share[i]
        filled[best] += sizes[i]
        placed[i] = best
    return placed


def _require_classes(fold: NDArray[np.int64], labels: NDArray[np.int64], n_folds: int) -> None:
    for k in range(n_folds):
        learned = np.unique(labels[(fold >= 0) & (fold != k)])
        if len(learned) < 2:
            raise EmptyClass(
                f"the target is constant in the samples that fold {k} of {n_folds} learns from: class {learned[0]}.",
                "all other classes are in groups of that fold; a fit to all samples is still possible",
                fix="more folds, or a group attribute with more values",
            )


def require_disjoint(groups: Mapping[str, Sequence[str]]) -> None:
    """Refuse a group that spans splits.

    Args:
        groups: split -> the group of each sample.

    Raises: SplitLeak, naming the splits and the first groups.
    """
    sets = {split: set(values) for split, values in groups.items()}
    names = list(sets)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            both = sets[first] & sets[second]
            if both:
                raise SplitLeak(
                    f"{len(both)} groups are in split '{first}' and in split '{second}': {_listed(sorted(both))}.",
                    f"{len(sets[second] - both)} of {len(sets[second])} groups of '{second}' are not in '{first}'",
                    fix="splits by whole groups, or a group attribute that the splits were made by",
                )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more
