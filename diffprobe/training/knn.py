"""KNNModule: k nearest neighbours in memory for every cell, target and control.

The training set is read once, before the evaluation. No weights are trained, and no setting is tuned.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.metrics.moments import RunningMoments
from diffprobe.probes.classifier.knn import Config, KNNBank
from diffprobe.probes.shuffled_labels import hash_keys
from diffprobe.training.classifier import REAL, ClassifierModule
from diffprobe.training.head_stack import Head
from diffprobe.training.module import labels_of, require_finite, vectors

LIMIT = 16 * 2**30
"""Largest size in bytes of the training features that the probes of a run write to disk together: 16 GiB."""


def check_size(n_samples: int, widths: Mapping[str, int], n_targets: int, *, limit: int | None = None) -> int:
    """Return the bytes that the probes of a run will take: each keeps the features of its training samples.

    Args:
        n_samples: number of training samples.
        widths: cell name -> d_in.
        n_targets: number of targets; each has a probe for each cell.
        limit: largest number of bytes; None for `LIMIT`.

    Raises: ConfigError above the limit.
    """
    limit = LIMIT if limit is None else limit
    size = 4 * n_samples * sum(widths.values()) * n_targets
    if size > limit:
        most = limit * n_samples // size
        raise ConfigError(
            f"the probes of this run would keep {size / 2**30:,.1f} GiB of training features, more than "
            f"{limit / 2**30:,.3g} GiB.",
            f"{n_samples:,} training samples x {sum(widths.values()):,} dimensions of {len(widths)} cells x 4 bytes, "
            f"once for each of {n_targets} targets",
            fix=f"data.limit={most} or less, probe.cell=CELL for one cell, fewer probe.targets, or features.pool=mean",
        )
    return size


class KNNModule(ClassifierModule):
    """k nearest neighbours for every cell, target and control; all targets and controls of a cell share the distances.

    Training samples are ordered by key, which decides ties whatever order they are read in.

    Args:
        name: file of the head in `probes/classifier`.
        config: its settings.
        n_train: number of training samples if it is known before they are read.
        widths, classes, only_control, metrics, settings, seed: see `ClassifierModule`. The seed fixes the shuffled
            labels only.

    Raises: UnknownName for an unknown metric, ConfigError for more features than probes may keep.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        *,
        n_train: int | None = None,
        widths: Mapping[str, int],
        classes: Mapping[str, Sequence[str]],
        only_control: bool = False,
        metrics: Sequence[str] = (),
        settings: TrainerConfig,
        seed: int = 0,
    ) -> None:
        if n_train is not None:
            check_size(n_train, widths, len(classes))  # before hours of features are computed
        super().__init__(
            name, config, widths=widths, classes=classes, only_control=only_control, metrics=metrics,
            settings=settings, seed=seed,
        )  # fmt: skip
        self.knn, self.widths = config, dict(widths)
        self.n_labelled: dict[str, int] = {}

    @property
    def seed_varies(self) -> tuple[str, ...]:
        """The permuted labels, if there are any."""
        return self.varied_labels

    def prepare(self) -> None:
        """Read the training set, standardise, permute the labels of the controls, and keep all of it in the banks.

        Raises: ConfigError with several processes, for fewer labelled samples than neighbours, and for more features
            than probes may keep; EmptyClass for a target with samples of fewer than 2 classes; NonFinite for the
            features; RunFailed for a duplicate key.
        """
        self.require_one_process()
        keys, features, labels, group = self._read()
        check_size(len(keys), self.widths, len(self.classes))
        for target, label in labels.items():
            self._check(target, label)
        hashes = hash_keys(keys)
        self._shuffle(hashes, labels, group)
        learned = torch.stack(
            [
                labels[target] if control == REAL and not self.only_control else self.shuffled[target].of(hashes)
                for target, control in self.tasks
            ]
        ).to(self.device)
        for cell, bank in zip(self.cells, self.banks, strict=True):
            assert isinstance(bank, KNNBank)
            x = features.pop(cell)
            moments = RunningMoments(bank.d_in).to(x.device)
            moments.update(x)
            found = moments.compute()
            bank.standardise(found.mean, found.variance)
            bank.memorise(x, learned)
            if not bank.features.any():
                rank_zero_warn(
                    f"cell '{cell}' has the same features for all training samples: no sample is nearer than others."
                )
        size = sum(map(self._size, self.heads)) / 2**20
        self.saving_note = f", with {size:,.1f} MiB of training features"

    def _read(self) -> tuple[list[str], dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return keys, features of each cell, labels of each target and groups of the training set, ordered by key."""
        keys: list[str] = []
        parts: dict[str, list[Tensor]] = {cell: [] for cell in self.cells}
        labels: dict[str, list[Tensor]] = {target: [] for target in self.classes}
        groups: list[Tensor] = []
        for batch in self.batches(self.train_split):
            require_finite(batch, self.cells)
            keys += batch.keys
            for cell in self.cells:
                parts[cell].append(vectors(batch, cell).float())
            for target in self.classes:
                labels[target].append(labels_of(batch, target).cpu())
            groups.append(self.group_ids(batch).cpu())
        if not keys:
            raise EmptyClass(f"split '{self.train_split}' has no samples.")
        order = torch.tensor(sorted(range(len(keys)), key=keys.__getitem__))
        features = {cell: torch.cat(parts.pop(cell))[order.to(self.device)] for cell in self.cells}
        sorted_labels = {target: torch.cat(values)[order] for target, values in labels.items()}
        return [keys[i] for i in order.tolist()], features, sorted_labels, torch.cat(groups)[order]

    def _check(self, target: str, label: Tensor) -> None:
        """Refuse a target that cannot be learned, and name its classes without a training sample."""
        counts = label[label >= 0].bincount(minlength=len(self.classes[target]))
        present = int((counts > 0).sum())
        if present < 2:
            raise EmptyClass(
                f"target '{target}' has training samples of {present} of {len(counts)} classes; at least 2 are needed.",
                f"split '{self.train_split}', {int(counts.sum())} samples with a value",
                fix="a larger data.limit, or another target",
            )
        if self.knn.k > int(counts.sum()):
            raise ConfigError(
                f"target '{target}': k={self.knn.k}, and {int(counts.sum())} training samples have a value.",
                fix=f"probe.params.k={int(counts.sum())} or less",
            )
        self.n_labelled[target] = int(counts.sum())
        absent = tuple(name for name, count in zip(self.classes[target], counts.tolist(), strict=True) if not count)
        self.absent[target] = absent
        if absent:
            more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
            rank_zero_warn(
                f"target '{target}': {len(absent)} of {len(counts)} classes have no training sample and are never "
                f"predicted: {', '.join(absent[:5])}{more}."
            )

    def _size(self, head: Head) -> int:
        """Return the bytes of training features that the probe of a head keeps; a control is not saved."""
        return 4 * self.widths[head.cell] * self.n_labelled[head.target] if head.control == REAL else 0

    def _convergence(self, head: Head) -> dict[str, Any]:
        """Return what voted."""
        return {
            "k": self.knn.k,
            "metric": self.knn.metric,
            "weights": self.knn.weights,
            "temperature": self.knn.temperature if self.knn.weights == "exponential" else None,
            "class_weight": self.knn.class_weight,
            "n_train": self.n_labelled[head.target],
            "absent_classes": list(self.absent[head.target]),
            "saved_bytes": self._size(head),
        }
