"""The exact pass over the training set before classifiers train: labels by key, and the moments of what heads read."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from diffprobe.core.errors import EmptyClass
from diffprobe.features.batch import FeatureBatch
from diffprobe.metrics.label_collector import LabelCollector
from diffprobe.metrics.moments import Moments, RunningMoments
from diffprobe.probes.classifier.inputs import Shapes, joined
from diffprobe.probes.shuffled_labels import hash_keys
from diffprobe.training.module import labels_of, require_finite, vectors

Made = TypeVar("Made")


class TrainingPass:
    """One exact pass over the training set: labels by key, and the moments of what the heads read.

    Args:
        inputs: name -> shapes of the maps that are read together, None for the vector of the cell of that name.
        widths: name -> d_in of those whose moments are needed.
        targets: the labels to collect.
        device: where sums are collected.
    """

    def __init__(
        self,
        inputs: Mapping[str, Shapes | None],
        widths: Mapping[str, int],
        targets: Sequence[str],
        device: torch.device,
    ) -> None:
        self.inputs, self.widths, self.targets = dict(inputs), dict(widths), tuple(targets)
        self.keyed = LabelCollector(len(self.targets) + 1).to(device)
        self.moments = {name: RunningMoments(width).to(device) for name, width in widths.items()}
        self._found: dict[str, Moments] | None = None
        self._shared: dict[Hashable, object] = {}
        self._labels: tuple[Tensor, dict[str, Tensor], Tensor] | None = None

    def update(self, batch: Any, group: Tensor, device: torch.device) -> None:
        """Add a batch. Raises: NonFinite, naming the cell, for its features."""
        rows = torch.stack([*(labels_of(batch, target) for target in self.targets), group], dim=1)
        self.keyed.update(hash_keys(batch.keys).to(device), rows.to(device))
        for name, running in self.moments.items():
            require_finite(batch, self.inputs[name] or (name,))
            running.update(read(batch, name, self.inputs[name]))

    def labels(self, split: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return hashes of the keys, labels of each target, and groups. Collective.

        Raises: EmptyClass for a target without a label.
        """
        if self._labels is None:
            hashes, labels = (part.cpu() for part in self.keyed.compute())
            *known, group = labels.T
            by_target = dict(zip(self.targets, known, strict=True))
            for target, label in by_target.items():
                if not (label >= 0).any():
                    raise EmptyClass(f"no sample of split '{split}' has a value of target '{target}'.")
            self._labels = hashes, by_target, group
        return self._labels

    def shared(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what all classifiers of this pass share under a key, made for the first of them."""
        if key not in self._shared:
            self._shared[key] = make()
        return cast(Made, self._shared[key])

    def sums(self, name: str) -> Moments:
        """Return the moments of an input. Collective: all processes ask for the same."""
        if self._found is None:
            self._found = {key: running.compute() for key, running in self.moments.items()}
        return self._found[name]


def read(batch: FeatureBatch, name: str, shapes: Shapes | None) -> Tensor:
    """Return what heads read of a batch, a vector per sample. Raises: ConfigError for features of another form."""
    return vectors(batch, name) if shapes is None else joined(batch.features, shapes)


def absent_classes(
    target: str, label: Tensor, names: Sequence[str], *, split: str, cells: Sequence[str]
) -> tuple[str, ...]:
    """Return the classes of a target without a training sample; warn of fewer samples than classes.

    Args:
        label: class ids of the samples that are learned from; -1 for none.
        names: names of the classes.
        split, cells: of the samples, for messages.

    Raises: EmptyClass for samples of fewer than 2 classes.
    """
    counts = torch.bincount(label[label >= 0], minlength=len(names))
    present, n = int((counts > 0).sum()), int(counts.sum())
    where = f"cells: {', '.join(cells)}"
    if present < 2:
        raise EmptyClass(
            f"target '{target}' has training samples of {present} of {len(names)} classes; at least 2 are needed.",
            f"split '{split}', {n} samples with a value; {where}",
            fix="a larger data.limit, or another target",
        )
    if n < len(names):
        rank_zero_warn(f"target '{target}': {n} training samples for {len(names)} classes ({where}).")
    return tuple(name for name, count in zip(names, counts.tolist(), strict=True) if not count)


def balanced_weights(label: Tensor, n_classes: int) -> Tensor:
    """Return samples / (classes with samples * samples of the class) for each class; 0 without a sample."""
    counts = torch.bincount(label[label >= 0], minlength=n_classes).float()
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 0.0)
