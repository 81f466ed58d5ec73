"""LinearCVModule: linear classifiers solved to convergence on features in memory, with L2 by grouped cross-validation.

There are no steps: everything happens before the evaluation, in one pass over the training set.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, DiffprobeError
from diffprobe.probes.classifier.base import ClassifierProbe
from diffprobe.probes.classifier.linear import LinearBank
from diffprobe.probes.classifier.linear_cv import Config
from diffprobe.probes.grouped_folds import Folds, grouped_folds
from diffprobe.probes.l2_selection import Chosen, Task, select_l2
from diffprobe.training.classifier import REAL, ClassifierModule
from diffprobe.training.head_stack import Head
from diffprobe.training.module import vectors

_BELOW = 30.0
"""How far the offset of a class without a training sample is below all others: a probability below 1e-13."""


class LinearCVModule(ClassifierModule):
    """Linear classifiers for every cell, target and control; each is tuned by itself, the controls as the real ones.

    Args:
        name: file of the head in `probes/classifier`.
        config: its settings.
        group: attribute whose samples stay in one fold, and by which labels are permuted; or "sample".
        widths, classes, only_control, metrics, settings, seed: see `ClassifierModule`. The seed fixes the shuffled
            labels only.

    Raises: UnknownName for an unknown metric.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        *,
        group: str,
        widths: Mapping[str, int],
        classes: Mapping[str, Sequence[str]],
        only_control: bool = False,
        metrics: Sequence[str] = (),
        settings: TrainerConfig,
        seed: int = 0,
    ) -> None:
        super().__init__(
            name, config, widths=widths, classes=classes, only_control=only_control, metrics=metrics,
            settings=settings, seed=seed,
        )  # fmt: skip
        self.requires_grad_(False)  # without a trained parameter a run has no steps
        self.cv, self.group = config, group
        self.chosen: dict[Head, Chosen] = {}
        self.folds: dict[tuple[str, str], Folds] = {}

    @property
    def seed_varies(self) -> tuple[str, ...]:
        """The permuted labels, if there are any."""
        return self.varied_labels

    @property
    def group_by(self) -> str:
        """Attribute by which folds are made and labels are permuted, or "sample"."""
        return self.group

    def prepare(self) -> None:
        """Standardise, permute the labels of the controls, and solve every head.

        Raises: ConfigError with several processes, for an unknown group and for fewer groups than folds; EmptyClass
            for a target without 2 classes, or constant within a fold; NonFinite for the features.
        """
        self.require_one_process()
        super().prepare()
        features, labels, groups = self._read()
        for (target, control), values in zip(self.tasks, labels, strict=True):
            try:
                self.folds[target, control] = grouped_folds(
                    groups, values, n_folds=self.cv.folds, seed=self.cv.fold_seed
                )
            except DiffprobeError as error:
                where = f"target '{target}', groups by '{self.group}', control '{control}'"
                raise type(error)(f"{where}: {error.what}", *error.details, fix=error.fix) from error
        for cell, bank in zip(self.cells, self.banks, strict=True):
            assert isinstance(bank, LinearBank)
            self._solve(cell, bank, features[cell], labels)
        self._warn()

    def _read(self) -> tuple[dict[str, Tensor], list[np.ndarray[Any, np.dtype[np.int64]]], list[str]]:
        """Return the features of each cell, what each task learns, and the group of each sample."""
        names = self.source.attributes.get(self.group, ())
        parts: dict[str, list[Tensor]] = {cell: [] for cell in self.cells}
        labels: list[list[Tensor]] = [[] for _ in self.tasks]
        groups: list[str] = []
        for batch in self.batches(self.train_split):
            for cell in self.cells:
                parts[cell].append(vectors(batch, cell).float())
            for into, values in zip(labels, self._task_labels(batch), strict=True):
                into.append(values.cpu())
            # a sample without a value of the group is a group of its own
            groups += [
                f"sample {key}" if i < 0 else f"group {names[i]}"
                for key, i in zip(batch.keys, self.group_ids(batch).tolist(), strict=True)
            ]
        features = {cell: torch.cat(rows) for cell, rows in parts.items()}
        return features, [torch.cat(values).numpy().astype(np.int64) for values in labels], groups

    def _solve(
        self, cell: str, bank: LinearBank, x: Tensor, labels: Sequence[np.ndarray[Any, np.dtype[np.int64]]]
    ) -> None:
        """Solve the heads of a cell; those with the same number of classes together.

        Raises: ConfigError for more components than the features of the cell have.
        """
        basis = None if self.cv.components is None else self._basis(cell, x, self.cv.components)
        read = x if basis is None else ((x.double() - basis[0]) @ basis[1]).float()
        for n_classes in sorted(set(bank.n_classes)):
            at = [i for i, count in enumerate(bank.n_classes) if count == n_classes]
            found = select_l2(
                read[None],
                [Task(labels[i], self.folds[self.tasks[i]]) for i in at],
                n_classes=n_classes,
                path=self.cv.l2,
                balanced=self.cv.class_weight == "balanced",
                one_standard_error=self.cv.one_standard_error,
                patience=self.cv.patience,
                dtype=torch.float32,
            )[0]
            for i, chosen in zip(at, found, strict=True):
                if basis is not None:  # weights and offset for the features themselves
                    weight = chosen.weight @ basis[1].T
                    chosen = replace(chosen, weight=weight, bias=chosen.bias - weight @ basis[0])
                self.chosen[Head(cell, *self.tasks[i])] = chosen
                self._place(bank, i, chosen)

    @staticmethod
    def _basis(cell: str, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """Return the mean of the features (d_in) and the map to n principal components (d_in, n), float64.

        Features are standardised first; the largest coefficient of a component is positive, so that it has one sign.
        """
        if n > min(x.shape):
            raise ConfigError(
                f"probe.params.components={n} for cell '{cell}', which has {x.shape[1]} dimensions and {x.shape[0]} "
                "training samples.",
                fix=f"probe.params.components={min(x.shape)} or less, for all rungs of a ladder the same",
            )
        whole = x.double()
        mean, std = whole.mean(0), whole.std(0, unbiased=False)
        inverse = torch.where(std > 0, 1 / torch.where(std > 0, std, 1.0), 0.0)
        standard = (whole - mean) * inverse
        components = torch.linalg.eigh(standard.T @ standard)[1].flip(1)[:, :n]
        largest = components.gather(0, components.abs().argmax(0, keepdim=True))
        return mean, inverse[:, None] * components * largest.sign()

    @staticmethod
    def _place(bank: LinearBank, index: int, chosen: Chosen) -> None:
        """Write a solution into the bank, whose weights are for features that it standardises."""
        start, width = sum(bank.n_classes[:index]), bank.n_classes[index]
        inverse, mean = bank.inverse_std.double(), bank.mean.double()
        weight = torch.where(inverse > 0, chosen.weight / torch.where(inverse > 0, inverse, 1.0), 0.0)
        bias = chosen.bias + chosen.weight @ mean
        learned = torch.isfinite(bias)
        bias = torch.where(learned, bias, bias[learned].min() - _BELOW)
        bank.weight[start : start + width] = weight.to(bank.weight)
        bank.bias[start : start + width] = bias.to(bank.bias)

    def _warn(self) -> None:
        rough = [f"'{head.target}' in {head.cell}" for head, found in self.chosen.items() if not found.converged]
        if rough:
            rank_zero_warn(f"{len(rough)} of {len(self.chosen)} regressions did not converge: {', '.join(rough[:5])}.")
        for (target, control), folds in self.folds.items():
            if control == REAL and folds.single_group_classes:
                names = [self.classes[target][k] for k in folds.single_group_classes]
                more = f" and {len(names) - 5} more" if len(names) > 5 else ""
                rank_zero_warn(
                    f"target '{target}': {len(names)} classes are in one value of '{self.group}' each, so that no fold "
                    f"scores them: {', '.join(names[:5])}{more}. L2 is chosen on the others; all are learned."
                )

    def _convergence(self, head: Head) -> dict[str, Any]:
        """Return how the penalty of a head was chosen, and how exactly it was solved."""
        found, folds = self.chosen[head], self.folds[head.target, head.control]
        beside = {
            control: self.chosen[head._replace(control=control)].l2
            for target, control in self.tasks
            if target == head.target and control != REAL
        }
        return {
            "l2": found.l2,
            "l2_at_edge": found.at_edge,
            "l2_path": list(found.path),
            "cv_log_loss": list(found.log_loss),
            "cv_standard_error": list(found.standard_error),
            "cv_folds": folds.n_folds,
            "cv_rule": "one standard error" if self.cv.one_standard_error else "smallest",
            "cv_unscored": found.n_unscored,
            "group": self.group,
            "n_groups": folds.n_groups,
            "single_group_classes": [self.classes[head.target][k] for k in folds.single_group_classes],
            "class_weight": self.cv.class_weight,
            "components": self.cv.components,
            "gradient_norm": found.gradient_norm,
            "objective_gap": found.gap,
            "converged": found.converged,
            "solver_steps": found.n_steps,
            "control_l2": beside,
        }

    def probe(self, cell: str, target: str) -> ClassifierProbe:
        """Copy one solved classifier out of the bank."""
        found = super().probe(cell, target)
        found.name, found.config = self.name, self.config
        return found
