"""Metrics of kept predictions as forms that are resampled all at once; the values are those of `rescore_metrics`."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.statistics import (
    AnyStatistic,
    LabelStatistic,
    SumStatistic,
    WeightStatistic,
    area_of,
    mean_of,
)
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.metrics import headline
from diffprobe.runs.rescore_metrics import Scored, find_measure

Numbers = NDArray[np.float64]


def form_of(scored: Scored, name: str, rows: Tensor) -> AnyStatistic:
    """Return a metric of some samples as a statistic of those samples.

    Args:
        scored: the predictions of a head.
        name: the metric, one that its kind has.
        rows: positions of the samples, into those of `scored`.
    """
    if name in ("accuracy", "balanced_accuracy", "macro_f1"):
        return _of_classes(scored, name, rows)
    if name == "log_loss":
        return mean_of(-scored.own[rows].numpy())
    if name == "auroc":
        return _areas(scored, rows)
    if name in ("fvu", "explained_variance"):
        return _fvu(scored, name, rows)
    if name == "l0":
        return mean_of(*_ratio_of(scored, "active", rows))
    measure = find_measure(scored.info.kind, name)
    return lambda drawn: measure.value(scored, rows[torch.from_numpy(drawn)])


def _of_classes(scored: Scored, name: str, rows: Tensor) -> SumStatistic:
    truth, predicted = scored.truth[rows].numpy(), scored.of("predicted")[rows].long().numpy()
    if name == "accuracy":
        return mean_of((truth == predicted).astype(np.float64))
    present, places = np.unique(np.concatenate([truth, predicted]), return_inverse=True)
    n = len(present)
    true, answered = np.eye(n)[places[: len(truth)]], np.eye(n)[places[len(truth) :]]

    def balanced(sums: Numbers) -> Numbers:
        return _mean_of_defined(sums[:, :n], sums[:, n : 2 * n])

    def macro_f1(sums: Numbers) -> Numbers:
        return _mean_of_defined(2 * sums[:, :n], sums[:, n : 2 * n] + sums[:, 2 * n :])

    parts = np.concatenate([true * answered, true, answered], axis=1)
    return SumStatistic(parts=parts, value=balanced if name == "balanced_accuracy" else macro_f1)


def _mean_of_defined(above: Numbers, below: Numbers) -> Numbers:
    """Return the mean over columns of above / below, without the columns where `below` is 0."""
    seen = below > 0
    shares = np.divide(above, below, out=np.zeros_like(above), where=seen)
    n = seen.sum(1)
    return np.divide(shares.sum(1), n, out=np.full(len(n), np.nan), where=n > 0)


def _areas(scored: Scored, rows: Tensor) -> WeightStatistic:
    """Return the mean area over classes that are there, or over the draws of a direction."""
    scores, positive = (part.numpy() for part in scored.columns(rows))
    areas = [area_of(scores[:, i], positive[:, i]).value for i in range(scores.shape[1])]

    def value(weights: Numbers) -> Numbers:
        found = np.stack([area(weights) for area in areas], axis=1)
        return _mean_of_defined(np.nan_to_num(found), (~np.isnan(found)).astype(np.float64))

    return WeightStatistic(n_samples=len(rows), value=value)


def _ratio_of(scored: Scored, name: str, rows: Tensor) -> tuple[Numbers, Numbers]:
    """Return a quantity per feature row, of each sample, and its number of rows."""
    n_rows = scored.of("n_rows")[rows].double().numpy()
    total = scored.of(name)[rows].double().numpy()
    return np.divide(total, n_rows, out=np.zeros_like(total), where=n_rows > 0), n_rows


def _fvu(scored: Scored, name: str, rows: Tensor) -> SumStatistic:
    per_row = scored.info.shift / max(float(scored.of("n_rows").double().sum()), 1)
    residual, square, n_rows = (scored.of(part)[rows].double().numpy() for part in ("residual", "square", "n_rows"))

    def value(sums: Numbers) -> Numbers:
        found = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] > 0)
        return found if name == "fvu" else 1 - found

    return SumStatistic(parts=np.stack([residual, square - per_row * n_rows], axis=1), value=value)


def is_higher_better(name: str) -> bool:
    """Return which end of a metric of a classifier or a direction is better; some of them are not in the registry."""
    registered = headline.is_higher_better(name)
    return name != "log_loss" if registered is None else registered


def label_form_of(scored: Scored, name: str, rows: Tensor) -> LabelStatistic:
    """Return a metric of some samples as a function of their labels, the predictions as they are.

    Raises: ConfigError for an autoencoder, which has no labels, and for the log loss where only the scores of the most
        likely classes were kept.
    """
    if scored.info.kind == "rows":
        raise ConfigError(
            "a null distribution permutes labels, which an autoencoder does not have.",
            fix="compare with the run of control=random_weights: --against",
        )
    if name == "log_loss" and scored.is_partial:
        raise ConfigError(
            f"target '{scored.info.target}' has {scored.n_classes} classes: only the scores of the most likely ones "
            "are kept, and the log loss of permuted labels needs all.",
            fix="--metric accuracy or balanced_accuracy",
        )
    if name == "accuracy":
        predicted = scored.of("predicted")[rows].long().numpy()
        return lambda labels: np.asarray((labels == predicted).mean(1), dtype=np.float64)
    if name == "balanced_accuracy":
        return _recalls_of_labels(scored.of("predicted")[rows].long().numpy(), scored.n_classes)
    if name == "auroc":
        return _areas_of_labels(scored, rows)
    measure = find_measure(scored.info.kind, name)

    def value(labels: NDArray[np.int64]) -> Numbers:
        found = np.full(len(labels), np.nan)
        everyone = torch.arange(len(rows))
        for i, drawn in enumerate(labels):
            try:
                found[i] = measure.value(scored.relabelled(rows, torch.from_numpy(drawn.copy())), everyone)
            except EmptyClass:
                continue
        return found

    return value


def _recalls_of_labels(predicted: NDArray[np.int64], n_classes: int) -> LabelStatistic:
    """Return the balanced accuracy as a function of labels: the mean recall of the classes that have samples."""

    def value(labels: NDArray[np.int64]) -> Numbers:
        n = len(labels)
        places = labels + n_classes * np.arange(n)[:, None]
        seen = np.bincount(places.ravel(), minlength=n * n_classes).reshape(n, n_classes)
        hits = np.bincount(places[labels == predicted], minlength=n * n_classes).reshape(n, n_classes)
        return _mean_of_defined(hits.astype(np.float64), seen.astype(np.float64))

    return value


def _areas_of_labels(scored: Scored, rows: Tensor) -> LabelStatistic:
    """Return the mean area under the ROC curve as a function of labels, from the ranks of the scores.

    Permuted labels have the same classes, so the columns that are ranked stay the same.
    """
    from scipy.stats import rankdata  # heavy

    scores = scored.columns(rows)[0].numpy()
    ranks = rankdata(scores, axis=0)
    if scored.info.kind == "axis":
        positives, shared = (1,), ranks
    else:
        positives, shared = tuple(scored.truth[rows].unique().tolist()), None

    def value(labels: NDArray[np.int64]) -> Numbers:
        areas = []
        for i, positive in enumerate(positives):
            own = ranks[:, i : i + 1] if shared is None else shared
            above = (labels == positive).astype(np.float64)
            n = above.sum(1, keepdims=True)
            pairs = n * (labels.shape[1] - n)
            wins = above @ own - n * (n + 1) / 2
            areas.append(np.divide(wins, pairs, out=np.full(wins.shape, np.nan), where=pairs > 0))
        return np.asarray(np.concatenate(areas, axis=1).mean(1), dtype=np.float64)

    return value
