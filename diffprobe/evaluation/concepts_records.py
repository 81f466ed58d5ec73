"""Records of `diffprobe eval concepts`: mean IoU of every cell on val, and all scores of the chosen one on test.

A candidate is a cell, with a threshold if one class has no words. It is chosen on val by the pooled mean IoU and scored
on test with an interval over groups that chooses anew in each resample. Each control that has cells does the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import (
    SumStatistic,
    bootstrap_interval,
    mean_of,
    paired_interval,
    ratio,
    selected_interval,
)
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.evaluation.concepts_settings import ConceptsEvaluation
from diffprobe.metrics.dense import class_iou, mean_iou
from diffprobe.report.entry import format_record

PROBES = {"output": "concept_attention", "attention": "raw_attention", "probs": "prompt_attention"}
"""Space -> name of the probe in the records."""
POOLED, PER_IMAGE, PIXELS, PRECISION = "miou_pooled", "miou_per_image", "pixel_accuracy", "mean_average_precision"
METRICS = (POOLED, PER_IMAGE, PIXELS, PRECISION)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What val chooses among."""

    cell: str
    """Name of the cell; "" for a control without cells."""
    threshold: float | None
    """Score below which a place gets the class without words; None if all classes have words."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rung:
    """The counts of the cells, or of a control."""

    val: Mapping[Candidate, NDArray[np.float64]]
    """Confusion of each image, (images, classes, classes), [true, predicted]."""
    test: Mapping[Candidate, NDArray[np.float64]]
    """The same for test."""
    chosen: Candidate
    """The best one of val."""
    precisions: NDArray[np.float64]
    """Average precision of the chosen one in each image of test, (images, classes); NaN for classes not there."""


def best_candidate(counts: Mapping[Candidate, NDArray[np.float64]]) -> Candidate:
    """Return the candidate of the largest pooled mean IoU, the first of equal ones."""
    return max(counts, key=lambda one: float(mean_iou(counts[one].sum(0))))


def concepts_records(
    config: ConceptsEvaluation, rungs: Mapping[str, Rung], groups: Mapping[str, Sequence[str]]
) -> list[MetricRecord]:
    """Return the records: all candidates on val, then the chosen one on test with its controls.

    Args:
        rungs: name -> counts; "own" is that of the cells.
        groups: split -> group of each image.

    Raises: TooFewGroups for fewer than two groups in a split; SplitLeak for a group in both.
    """
    val, test = config.data.val_split, config.data.test_split
    own, probe = rungs["own"], PROBES[config.space]
    records = []
    for candidate, found in own.val.items():
        interval = bootstrap_interval(_statistic(POOLED, found), groups[val], seed=config.seed)
        records.append(
            MetricRecord(
                name=POOLED, value=interval.estimate, split=val, n=len(found), cell=candidate.cell, probe=probe,
                controls={},
                detail={
                    "interval": [interval.low, interval.high], "level": interval.level, **_threshold(candidate)
                },
            )
        )  # fmt: skip
    others = {name: rung for name, rung in rungs.items() if name != "own"}
    counts = own.test[own.chosen]
    for metric in METRICS:
        if metric == POOLED:
            interval = selected_interval(
                [_statistic(metric, found) for found in own.val.values()], groups[val],
                [_statistic(metric, own.test[one]) for one in own.val], groups[test], seed=config.seed,
            ).interval  # fmt: skip
        else:
            interval = bootstrap_interval(_of(metric, own), groups[test], seed=config.seed)
        differences = {
            name: paired_interval(_of(metric, own), _of(metric, rung), groups[test], seed=config.seed)
            for name, rung in others.items()
        }
        controls = {
            name: bootstrap_interval(_of(metric, rung), groups[test], seed=config.seed).estimate
            for name, rung in others.items()
        }
        by_class = _mean_precisions(own) if metric == PRECISION else class_iou(counts.sum(0))
        detail: dict[str, Any] = {
            "interval": [interval.low, interval.high], "level": interval.level, "n_clusters": interval.n_clusters,
            "selected_by": f"{POOLED} on {val}, among {len(own.val)} candidates", **_threshold(own.chosen),
            "control_cells": {
                name: {"cell": rung.chosen.cell, **_threshold(rung.chosen)}
                for name, rung in others.items() if rung.chosen.cell
            },
            "differences": {name: [one.estimate, one.low, one.high] for name, one in differences.items()},
        }  # fmt: skip
        if metric in (POOLED, PRECISION):
            detail["by_class"] = _named(config, by_class)
            detail["controls_by_class"] = {
                name: _named(
                    config,
                    _mean_precisions(rung) if metric == PRECISION else class_iou(rung.test[rung.chosen].sum(0)),
                )
                for name, rung in others.items()
            }
        records.append(
            MetricRecord(
                name=metric, value=interval.estimate, split=test, n=len(counts), cell=own.chosen.cell, probe=probe,
                controls=controls, detail=detail,
            )
        )  # fmt: skip
    return records


def _threshold(candidate: Candidate) -> dict[str, float]:
    return {} if candidate.threshold is None else {"threshold": candidate.threshold}


def _named(config: ConceptsEvaluation, values: NDArray[np.float64]) -> dict[str, float]:
    return {name: float(v) for name, v in zip(config.classes, values, strict=True) if not np.isnan(v)}


def _mean_precisions(rung: Rung) -> NDArray[np.float64]:
    """Return the mean over the images that have a class, NaN for a class that none has."""
    known = ~np.isnan(rung.precisions)
    n = known.sum(0)
    return np.divide(np.where(known, rung.precisions, 0).sum(0), n, out=np.full(n.shape, np.nan), where=n > 0)


def _of(metric: str, rung: Rung) -> SumStatistic:
    if metric == PRECISION:
        return mean_of(np.nanmean(rung.precisions, axis=1))
    return _statistic(metric, rung.test[rung.chosen])


def _statistic(metric: str, counts: NDArray[np.float64]) -> SumStatistic:
    """Return a score as a statistic over images."""
    if metric == PER_IMAGE:
        return mean_of(mean_iou(counts))
    if metric == PIXELS:
        hits = np.diagonal(counts, axis1=1, axis2=2).sum(1)
        return SumStatistic(parts=np.stack([hits, counts.sum((1, 2))], axis=1), value=ratio)
    n_classes = counts.shape[-1]
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda sums: mean_iou(  # noqa: E731
        sums.reshape(-1, n_classes, n_classes)
    )
    return SumStatistic(parts=counts.reshape(len(counts), -1), value=value)


def summary_lines(result: RunResult) -> list[str]:
    """Return lines for people: the chosen cell, its scores with differences, and the classes."""
    lines = []
    for record in result.metrics:
        if record.split != result.config["data"]["test_split"]:
            continue
        lines.append(format_record(record))
        lines += [
            f"  minus {name}: {value:+.3f} [{low:+.3f}, {high:+.3f}]"
            for name, (value, low, high) in record.detail["differences"].items()
        ]
        if "by_class" in record.detail:
            lines.append("  " + ", ".join(f"{name} {v:.3f}" for name, v in record.detail["by_class"].items()))
    return lines
