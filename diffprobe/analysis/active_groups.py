"""The groups in which a latent is active, and the labels that as many groups drawn at random would have.

Variants of one drawing share most of what a latent reads: a latent that is active on twelve of them has seen one
drawing. Chance therefore draws groups, and as many samples within each as the latent is active on.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.groups import Groups


class _Samples(NamedTuple):
    """The labelled samples in the order of their groups."""

    label: NDArray[np.int64]
    """Label of each, shape (samples,)."""
    group: NDArray[np.int64]
    """Number of its group, ascending, shape (samples,)."""
    place: NDArray[np.int64]
    """Place of each sample of the stream in this order, -1 for those without a label."""
    size: NDArray[np.int64]
    """Labelled samples of each group, shape (groups,)."""


class ActiveGroups:
    """Group and label of each sample of a stream, and the samples on which some latents are active.

    Args:
        latents: the latents that can be drawn for; only their activity is kept.
        n_classes: number of classes of the label.
    """

    def __init__(self, latents: Sequence[int], n_classes: int) -> None:
        self.latents, self.n_classes = tuple(latents), n_classes
        self._labels: list[NDArray[np.int64]] = []
        self._groups: list[NDArray[np.int64]] = []
        self._active: dict[int, list[NDArray[np.int64]]] = {latent: [] for latent in self.latents}
        self._n = 0

    def update(
        self,
        latent: NDArray[np.int64],
        sample: NDArray[np.int64],
        label: NDArray[np.int64],
        group: NDArray[np.int64],
    ) -> None:
        """Add a batch.

        Args:
            latent, sample: the active latents, and the place in the batch of the sample on which each is active; no
                pair twice.
            label: label of each sample, -1 for none.
            group: id of the group of each sample, -1 for a group of its own.
        Raises: ConfigError for other numbers of groups than of samples.
        """
        if label.shape != group.shape:
            raise ConfigError(f"active groups: {len(group)} groups for {len(label)} samples.")
        for kept, found in self._active.items():
            found.append(self._n + sample[latent == kept])
        self._labels.append(label)
        self._groups.append(group)
        self._n += len(label)
        self.__dict__.pop("_samples", None)

    @cached_property
    def _samples(self) -> _Samples:
        label, group = np.concatenate(self._labels), np.concatenate(self._groups)
        known = np.flatnonzero(label >= 0)
        groups = Groups.of_values(group[known])
        order = np.argsort(groups.ids, kind="stable")
        place = np.full(len(label), -1, dtype=np.int64)
        place[known[order]] = np.arange(len(order))
        size = np.bincount(groups.ids, minlength=groups.n).astype(np.int64)
        return _Samples(label[known[order]], groups.ids[order], place, size)

    def counts(self, latent: int) -> NDArray[np.int64]:
        """Return on how many labelled samples of each of its groups a latent is active, the largest number first.

        Raises: ConfigError for a latent that is not kept.
        """
        if latent not in self._active:
            raise ConfigError(f"latent {latent} is not among the {len(self.latents)} whose groups are kept.")
        samples = self._samples
        places = samples.place[np.concatenate(self._active[latent])]
        found = np.bincount(samples.group[places[places >= 0]], minlength=1)
        return np.sort(found[found > 0])[::-1].astype(np.int64)

    def draw(self, latent: int, n: int, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return how often each label occurs among as many samples of as many groups, drawn at random.

        Each group of the latent is replaced by a random one that has enough samples, and its active samples by as many
        random ones of that group, without replacement.

        Args:
            latent: the latent.
            n: number of draws.
            generator: source of the draws.
        Returns: counts, int64 (n, n_classes).
        Raises: EmptyClass if the latent is active on no labelled sample; ConfigError for a latent that is not kept.
        """
        wanted = self.counts(latent)
        if len(wanted) == 0:
            raise EmptyClass(f"latent {latent} is active on no labelled sample of {self._n}.")
        return np.stack([self._one(wanted, generator) for _ in range(n)])

    def _one(self, wanted: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
        samples = self._samples
        taken = np.zeros(len(samples.size), dtype=np.int64)
        # From the largest number down every group that is free and large enough is equally likely: all assignments are.
        for count, times in zip(*(part[::-1] for part in np.unique(wanted, return_counts=True)), strict=True):
            free = np.flatnonzero((taken == 0) & (samples.size >= count))
            taken[generator.choice(free, times, replace=False)] = count
        rows = np.flatnonzero(taken[samples.group] > 0)
        group = samples.group[rows]
        rows = rows[np.argsort(group + generator.random(len(rows)))]  # random order within each group
        first = np.searchsorted(group, group)
        chosen = rows[np.arange(len(rows)) - first < taken[group]]
        return np.bincount(samples.label[chosen], minlength=self.n_classes).astype(np.int64)
