"""Metrics from kept predictions: what can be computed for each kind of head, over all samples or some of them.

Metrics that runs record are computed by the same functions. The others come from torchmetrics where it has them.
"""

from collections.abc import Callable
from copy import copy
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics.functional.classification import binary_average_precision, multiclass_f1_score

from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, unknown
from diffprobe.metrics import load_metrics, measured_on
from diffprobe.metrics.auroc import auroc
from diffprobe.probes.predictions import FULL_CLASSES, KEPT_CLASSES, Predictions

Rows = NDArray[np.int64]
"""Positions into the samples, with repeats in a resample."""
Kind = Literal["classes", "axis", "rows"]


class Measure(NamedTuple):
    """A metric of one kind of head."""

    value: Callable[["Scored", Tensor], float]
    """Its value over some samples. Raises: EmptyClass where it is not defined."""
    chance: Callable[["Scored", Tensor], float] | None = None
    """The value of the best constant answer to these samples; None for metrics without one."""


class Scored:
    """The predictions of one head, for the samples that it can be scored on.

    Args:
        predictions: the predictions of a run.
        head: number of the head.

    Attributes:
        rows: positions of the samples that have a truth, into the keys.
        truth: what should be predicted, of these samples; the other tensors have the same samples.
    """

    def __init__(self, predictions: Predictions, head: int) -> None:
        self.info = predictions.heads[head]
        truth = predictions.truth(head)
        self.rows = (truth >= 0).nonzero().flatten()
        self.truth = truth[self.rows]
        self.n_classes = len(predictions.values[self.info.target]) if self.info.target is not None else 0
        self._tensors = {
            name: predictions.of(name, head)[self.rows]
            for name in ("predicted", "scores", "own", "top", "n_rows", "residual", "square", "active")
            if predictions.has(name, head)
        }

    def of(self, name: str) -> Tensor:
        """Return a tensor of the head: "predicted", "residual", ..."""
        return self._tensors[name]

    def relabelled(self, rows: Tensor, truth: Tensor) -> "Scored":
        """Return the predictions of some samples with another truth, int64 of shape (rows,)."""
        other = copy(self)
        other.rows, other.truth = self.rows[rows], truth
        other._tensors = {name: part[rows] for name, part in self._tensors.items()}
        return other

    @property
    def is_partial(self) -> bool:
        """Whether only the scores of the most likely classes were kept."""
        return "top" in self._tensors

    @property
    def own(self) -> Tensor:
        """The log-probability of the true class of each sample, float64."""
        if "own" in self._tensors:
            return self.of("own").double()
        return self.of("scores").double().gather(1, self.truth[:, None])[:, 0]

    def columns(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores (samples, columns) by which samples are ranked, and whether each sample is positive in them.

        Of a classifier: the log-odds of each class that has samples, one class against all others. Of a direction: its
        draws.

        Raises: ConfigError where not all scores were kept; EmptyClass with fewer than two classes.
        """
        truth = self.truth[rows]
        if self.info.kind == "axis":
            scores = self.of("scores")[rows].double().reshape(len(rows), -1)
            return scores, (truth == 1)[:, None].expand_as(scores)
        if self.is_partial:
            raise ConfigError(
                f"target '{self.info.target}' has {self.n_classes} classes: only the scores of the {KEPT_CLASSES} most "
                f"likely ones are kept, and a ranking needs all.",
                f"all are kept up to {FULL_CLASSES} classes",
                fix="accuracy, balanced_accuracy, macro_f1 or log_loss",
            )
        present = truth.unique()
        if len(present) < 2:
            raise EmptyClass(f"target '{self.info.target}': {len(present)} class has samples; a ranking needs two.")
        logs = self.of("scores")[rows].double()
        others = torch.stack([torch.cat([logs[:, :c], logs[:, c + 1 :]], 1).logsumexp(1) for c in present.tolist()], 1)
        return logs[:, present] - others, truth[:, None] == present

    def confusion(self, rows: Tensor) -> Tensor:
        """Return the confusion counts [true, predicted]. Raises: EmptyClass without samples."""
        if not len(rows):
            raise EmptyClass(f"target '{self.info.target}': no sample.")
        cells = self.truth[rows] * self.n_classes + self.of("predicted")[rows].long()
        return cells.bincount(minlength=self.n_classes**2).view(self.n_classes, self.n_classes)


def measures(kind: Kind) -> dict[str, Measure]:
    """Return the metrics of a kind of head by name: those that runs record first."""
    if kind == "rows":
        return {"fvu": Measure(_fvu), "explained_variance": Measure(_explained), "l0": Measure(_l0)}
    ranked = {
        "auroc": Measure(_auroc, lambda scored, rows: 0.5),
        "average_precision": Measure(_average_precision, _prevalence),
    }
    if kind == "axis":
        return ranked
    own = {"macro_f1": Measure(_macro_f1, _constant_f1), "log_loss": Measure(_log_loss, _entropy)}
    return {metric.name: _registered(metric.name) for metric in measured_on("classifier")} | own | ranked


def find_measure(kind: Kind, name: str) -> Measure:
    """Return a metric by its name. Raises: UnknownName, with the nearest, for one that the kind does not have."""
    known = measures(kind)
    if name not in known:
        what = {"classes": "a classifier", "axis": "a direction", "rows": "an autoencoder"}[kind]
        raise unknown(f"metric of {what} that kept predictions give:", name, known)
    return known[name]


def _registered(name: str) -> Measure:
    (file,) = load_metrics("classifier", [name])
    return Measure(
        lambda scored, rows: float(file.from_confusion(scored.confusion(rows))),
        lambda scored, rows: float(file.chance(scored.confusion(rows))),
    )


def _macro_f1(scored: Scored, rows: Tensor) -> float:
    """Return the mean F1 over the classes that are true or predicted for some sample."""
    if not len(rows):
        raise EmptyClass(f"target '{scored.info.target}': no sample.")
    predicted, truth = scored.of("predicted")[rows].long(), scored.truth[rows]
    return float(multiclass_f1_score(predicted, truth, num_classes=scored.n_classes, average="macro"))


def _shares(scored: Scored, rows: Tensor) -> Tensor:
    counts = scored.truth[rows].bincount().double()
    return counts[counts > 0] / len(rows)


def _constant_f1(scored: Scored, rows: Tensor) -> float:
    """Return the macro F1 of always answering the most frequent class."""
    shares = _shares(scored, rows)
    largest = float(shares.max())
    return 2 * largest / (1 + largest) / len(shares)


def _log_loss(scored: Scored, rows: Tensor) -> float:
    """Return minus the mean natural log-probability of the true class."""
    if not len(rows):
        raise EmptyClass(f"target '{scored.info.target}': no sample.")
    return -float(scored.own[rows].mean())


def _entropy(scored: Scored, rows: Tensor) -> float:
    """Return the log loss of answering the shares of the classes among these samples."""
    shares = _shares(scored, rows)
    return -float((shares * shares.log()).sum())


def _auroc(scored: Scored, rows: Tensor) -> float:
    """Return the mean area under the ROC curve: over classes, one against all others, or over draws."""
    scores, positive = scored.columns(rows)
    if scored.info.kind == "axis":
        return float(auroc(scores, positive[:, 0]).mean())
    areas = [float(auroc(scores[:, [i]], positive[:, i])) for i in range(scores.shape[1])]
    return sum(areas) / len(areas)


def _average_precision(scored: Scored, rows: Tensor) -> float:
    """Return the mean average precision: over classes, one against all others, or over draws."""
    scores, positive = scored.columns(rows)
    found = []
    for column, truth in zip(scores.T, positive.T, strict=True):
        if not truth.any():
            raise EmptyClass(f"target '{scored.info.target}': no positive sample.")
        places = column.unique(return_inverse=True)[1].double()  # torchmetrics would squash scores into 0..1 itself
        found.append(float(binary_average_precision(places / max(len(rows), 1), truth.long())))
    return sum(found) / len(found)


def _prevalence(scored: Scored, rows: Tensor) -> float:
    _, positive = scored.columns(rows)
    return float(positive.double().mean())


def _rows_of(scored: Scored, rows: Tensor, name: str) -> float:
    return float(scored.of(name)[rows].double().sum())


def _fvu(scored: Scored, rows: Tensor) -> float:
    """Return the fraction of variance unexplained; the mean is that of the whole split, also for some samples."""
    per_row = scored.info.shift / max(float(scored.of("n_rows").double().sum()), 1)
    variance = _rows_of(scored, rows, "square") - per_row * _rows_of(scored, rows, "n_rows")
    if variance <= 0:
        raise NonFinite("fvu: the samples do not vary.")
    return _rows_of(scored, rows, "residual") / variance


def _explained(scored: Scored, rows: Tensor) -> float:
    return 1 - _fvu(scored, rows)


def _l0(scored: Scored, rows: Tensor) -> float:
    """Return the mean number of active latents per row."""
    return _rows_of(scored, rows, "active") / max(_rows_of(scored, rows, "n_rows"), 1)
