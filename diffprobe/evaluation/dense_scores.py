"""Records of dense readouts: the score of each cell on val, and of the chosen one on test beside its controls.

For each number of labelled images the cell and its penalty are chosen together on val, by the mean over the draws of
the labelled images, and scored on test. The interval resamples groups of images and chooses anew in each resample; what
another draw of the labelled images changes is recorded beside it. Each control chooses in the same way.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import (
    AnyStatistic,
    SumStatistic,
    bootstrap_interval,
    evaluate,
    mean_statistic,
    paired_interval,
    selected_interval,
)
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.evaluation.dense_settings import DenseEvaluation
from diffprobe.report.entry import format_record

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.features.request import Request
    from diffprobe.shards.class_maps import DenseSample

_Array = NDArray[np.float64]
Candidate = tuple[str, float, int, int]
"""Cell, penalty, number of labelled images, and number of their draw."""
Counts = dict[str, dict[Candidate, _Array]]
"""Split -> candidate -> what scores sum, of each image: (images, ...)."""
Predict = Callable[["Tensor", tuple[int, int]], "Tensor"]
"""Map of an image, (channels, height, width), and size of the truth -> what is predicted of each of its pixels."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score of the counts of images."""

    name: str
    """Name of the metric, without the number of labels."""
    statistic: Callable[[_Array], SumStatistic]
    """Counts of images -> the score as a statistic over images."""
    higher_is_better: bool = True


class DenseTask(Protocol):
    """What is read of each pixel."""

    @property
    def kind(self) -> str:
        """Kind of the results."""

    @property
    def probe(self) -> str:
        """Name of the readout in the records."""

    @property
    def scores(self) -> Sequence[Score]:
        """The scores, from the counts of images; cells are chosen by the first one."""

    def read(self, request: "Request", split: str, n: int) -> "Sequence[DenseSample]":
        """Return the first samples of a split with their truth."""

    def truth(self, sample: "DenseSample") -> "Tensor":
        """Return the truth of a sample, (rows, cols)."""

    def fit(self, maps: "Tensor", truth: "Sequence[Tensor]", penalty: float) -> Predict:
        """Return a fitted readout."""

    def by_place(self, truth: "Sequence[Tensor]", size: tuple[int, int]) -> Predict:
        """Return what predicts the same for all images."""

    def by_mean(self, maps: "Tensor", truth: "Sequence[Tensor]") -> Predict:
        """Return what predicts the class of the nearest mean."""

    def count(self, predicted: "Tensor", truth: "Tensor") -> _Array:
        """Return what the scores sum over images."""

    def detail(self, counts: Sequence[_Array]) -> dict[str, object]:
        """Return what a test record holds beside its scores; counts are those of each draw, (images, ...)."""


def metric_name(score: str, n: int) -> str:
    """Return the name of a metric: the score, and the number of labelled images.

    >>> metric_name("miou_pooled", 16)
    'miou_pooled_labels16'
    """
    return f"{score}_labels{n}"


def candidates_of(counts: Counts, n: int) -> list[tuple[str, float]]:
    """Return the cells and penalties of a number of labels, in order."""
    return list(dict.fromkeys((cell, penalty) for cell, penalty, labels, _ in counts["val"] if labels == n))


def over_draws(counts: Counts, split: str, one: tuple[str, float], n: int) -> list[_Array]:
    """Return the counts of a cell and penalty, of each draw of the labelled images."""
    return [found for (cell, l2, labels, _), found in counts[split].items() if (cell, l2, labels) == (*one, n)]


def mean_score(score: Score, draws: Sequence[_Array]) -> AnyStatistic:
    """Return the mean over draws of a score, as a statistic over images."""
    return mean_statistic([score.statistic(one) for one in draws])


def best_candidate(counts: Counts, n: int, score: Score) -> tuple[str, float]:
    """Return the cell and penalty of the best mean score on val, the first of equal ones."""
    sign = 1 if score.higher_is_better else -1
    return max(
        candidates_of(counts, n), key=lambda one: sign * _value(mean_score(score, over_draws(counts, "val", one, n)))
    )


def dense_score_records(
    config: DenseEvaluation, task: DenseTask, counts: Mapping[str, Counts], groups: Mapping[str, Sequence[str]]
) -> list[MetricRecord]:
    """Return the records: all cells on val, then the chosen cell on test with its controls, by number of labels.

    Args:
        counts: rung -> counts; "own" is that of the cells.
        groups: "val" and "test" -> group of each image.

    Raises: TooFewGroups for fewer than two groups in a split.
    """
    records = []
    for n in config.labels:
        records += _val_records(config, task, counts["own"], groups["val"], n)
    for n in config.labels:
        records += _test_records(config, task, counts, groups, n)
    return records


def _val_records(
    config: DenseEvaluation, task: DenseTask, own: Counts, groups: Sequence[str], n: int
) -> list[MetricRecord]:
    """Return the score of each cell on val, at the penalty that is its best one there."""
    score, records = task.scores[0], []
    for cell in dict.fromkeys(cell for cell, _ in candidates_of(own, n)):
        alone: Counts = {"val": {key: found for key, found in own["val"].items() if key[0] == cell}}
        best = best_candidate(alone, n, score)
        draws = over_draws(own, "val", best, n)
        interval = bootstrap_interval(mean_score(score, draws), groups, seed=config.seed)
        records.append(
            MetricRecord(
                name=metric_name(score.name, n), value=interval.estimate, split=config.data.val_split,
                n=len(groups), cell=cell, probe=task.probe, controls={},
                detail={
                    "interval": [interval.low, interval.high], "level": interval.level, "labels": n, "l2": best[1],
                    "by_draw": _by_draw(score, draws),
                },
            )
        )  # fmt: skip
    return records


def _test_records(
    config: DenseEvaluation,
    task: DenseTask,
    counts: Mapping[str, Counts],
    groups: Mapping[str, Sequence[str]],
    n: int,
) -> list[MetricRecord]:
    select, own, records = task.scores[0], counts["own"], []
    chosen = {rung: best_candidate(of_rung, n, select) for rung, of_rung in counts.items()}
    tests = {rung: over_draws(counts[rung], "test", one, n) for rung, one in chosen.items()}
    candidates = candidates_of(own, n)
    cells = len({cell for cell, _ in candidates})
    penalties = config.penalties
    for score in task.scores:
        if score is select:
            interval = selected_interval(
                [mean_score(score, over_draws(own, "val", one, n)) for one in candidates],
                [("val", one) for one in groups["val"]],
                [mean_score(score, over_draws(own, "test", one, n)) for one in candidates],
                [("test", one) for one in groups["test"]],
                higher_is_better=score.higher_is_better,
                seed=config.seed,
            ).interval
        else:
            interval = bootstrap_interval(mean_score(score, tests["own"]), groups["test"], seed=config.seed)
        others = {rung: mean_score(score, found) for rung, found in tests.items() if rung != "own"}
        differences = {
            rung: paired_interval(mean_score(score, tests["own"]), other, groups["test"], seed=config.seed)
            for rung, other in others.items()
        }
        by_draw = _by_draw(score, tests["own"])
        detail: dict[str, Any] = {
            "interval": [interval.low, interval.high], "level": interval.level, "n_clusters": interval.n_clusters,
            "labels": n, "l2": chosen["own"][1], "by_draw": by_draw,
            "selected_by": f"{metric_name(select.name, n)} on {config.data.val_split}, among {cells} cells and "
            f"{len(penalties)} penalties",
            "l2_at_end": score is select and len(penalties) > 1 and chosen["own"][1] in (penalties[0], penalties[-1]),
            "control_cells": {rung: chosen[rung][0] for rung in others if chosen[rung][0]},
            "control_l2": {rung: chosen[rung][1] for rung in others if chosen[rung][1]},
            "control_by_draw": {rung: _by_draw(score, tests[rung]) for rung in others},
            "differences": {rung: [one.estimate, one.low, one.high] for rung, one in differences.items()},
        }  # fmt: skip
        if len(by_draw) > 1:
            detail["sd_over_draws"] = float(np.std(by_draw, ddof=1))
        if score is select:
            detail |= task.detail(tests["own"])
        records.append(
            MetricRecord(
                name=metric_name(score.name, n), value=interval.estimate, split=config.data.test_split,
                n=len(groups["test"]), cell=chosen["own"][0], probe=task.probe,
                controls={rung: _value(other) for rung, other in others.items()}, detail=detail,
            )
        )  # fmt: skip
    return records


def _value(statistic: AnyStatistic) -> float:
    assert isinstance(statistic, SumStatistic)
    return evaluate(statistic, np.arange(len(statistic.parts), dtype=np.int64))


def _by_draw(score: Score, draws: Sequence[_Array]) -> list[float]:
    return [_value(score.statistic(one)) for one in draws]


def summary_lines(result: RunResult) -> list[str]:
    """Return lines for people: the chosen cell by number of labels, with what draws change, and differences."""
    lines = []
    published = result.config.get("published") or {}
    for record in result.metrics:
        if record.split != result.config["data"]["test_split"]:
            continue
        lines.append(format_record(record))
        if "sd_over_draws" in record.detail:
            values = ", ".join(f"{value:.3f}" for value in record.detail["by_draw"])
            lines.append(f"  by draw of the labelled images: {values}")
        if record.detail["l2_at_end"]:
            lines.append(f"  the chosen penalty {record.detail['l2']:g} is at the end of l2")
        if record.name == published.get("metric"):
            delta = record.value - published["value"]
            lines.append(f"  published {published['value']:.4g} ({published['source']}), delta {delta:+.4f}")
        lines += [
            f"  minus {name}: {value:+.3f} [{low:+.3f}, {high:+.3f}]"
            for name, (value, low, high) in record.detail["differences"].items()
        ]
        if "iou_pooled" in record.detail:
            lines.append("  IoU: " + ", ".join(f"{name} {v:.3f}" for name, v in record.detail["iou_pooled"].items()))
    return lines
