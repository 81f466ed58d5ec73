"""Records of `diffprobe eval segmentation`: mIoU of every cell on val, and of the chosen one on test.

For each number of labelled images the cell is chosen on val by the pooled mIoU, and scored on test with an interval
that chooses anew in each resample. Each control that has several cells chooses its own in the same way.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import (
    SumStatistic,
    bootstrap_interval,
    mean_of,
    paired_interval,
    selected_interval,
)
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.evaluation.segmentation_settings import SegmentationEvaluation
from diffprobe.metrics.dense import Averaging, class_iou, mean_iou
from diffprobe.report.entry import format_record

PROBE = "linear_1x1"
"""Name of the probe in the records."""
VARIANTS: tuple[Averaging, ...] = ("pooled", "per_image")
Counts = dict[str, dict[tuple[str, int], NDArray[np.float64]]]
"""Split -> (cell, number of labelled images) -> confusion of each image, (images, classes, classes)."""


def metric_name(variant: Averaging, n: int) -> str:
    """Return the name of the mean IoU: its variant, and the number of labelled images.

    >>> metric_name("pooled", 16)
    'miou_pooled_labels16'
    """
    return f"miou_{variant}_labels{n}"


def best_cell(counts: Counts, n: int) -> str:
    """Return the cell of the largest pooled mIoU on val, the first of equal ones."""
    cells = {cell: found for (cell, labels), found in counts["val"].items() if labels == n}
    return max(cells, key=lambda cell: float(mean_iou(cells[cell].sum(0))))


def segmentation_records(
    config: SegmentationEvaluation, counts: Mapping[str, Counts], groups: Mapping[str, Sequence[str]]
) -> list[MetricRecord]:
    """Return the records: all cells on val, then the chosen cell on test with its controls, by number of labels.

    Args:
        counts: rung -> confusions; "own" is that of the cells.
        groups: "val" and "test" -> group of each image.

    Raises: TooFewGroups for fewer than two groups in a split.
    """
    records, splits = [], {"val": config.data.val_split, "test": config.data.test_split}
    own = counts["own"]
    for (cell, n), found in own["val"].items():
        statistic = _statistic(found, "pooled")
        interval = bootstrap_interval(statistic, groups["val"], seed=config.seed)
        records.append(
            MetricRecord(
                name=metric_name("pooled", n), value=interval.estimate, split=splits["val"], n=len(found), cell=cell,
                probe=PROBE, controls={},
                detail={"interval": [interval.low, interval.high], "level": interval.level, "labels": n},
            )
        )  # fmt: skip
    for n in config.labels:
        chosen = {rung: best_cell(of_rung, n) for rung, of_rung in counts.items()}
        tests = {rung: counts[rung]["test"][cell, n] for rung, cell in chosen.items()}
        cells = [cell for cell, labels in own["val"] if labels == n]
        for variant in VARIANTS:
            if variant == "pooled":
                interval = selected_interval(
                    [_statistic(own["val"][cell, n], variant) for cell in cells],
                    [("val", one) for one in groups["val"]],
                    [_statistic(own["test"][cell, n], variant) for cell in cells],
                    [("test", one) for one in groups["test"]],
                    seed=config.seed,
                ).interval
            else:
                interval = bootstrap_interval(_statistic(tests["own"], variant), groups["test"], seed=config.seed)
            others = {rung: found for rung, found in tests.items() if rung != "own"}
            differences = {
                rung: paired_interval(
                    _statistic(tests["own"], variant), _statistic(found, variant), groups["test"], seed=config.seed
                )
                for rung, found in others.items()
            }
            iou = class_iou(tests["own"].sum(0))
            detail = {
                "interval": [interval.low, interval.high], "level": interval.level, "n_clusters": interval.n_clusters,
                "labels": n, "selected_by": f"{metric_name('pooled', n)} on {splits['val']}, among {len(cells)} cells",
                "control_cells": {rung: chosen[rung] for rung in others if chosen[rung]},
                "differences": {rung: [one.estimate, one.low, one.high] for rung, one in differences.items()},
                "iou_pooled": {name: float(v) for name, v in zip(config.classes, iou, strict=True) if not np.isnan(v)},
            }  # fmt: skip
            records.append(
                MetricRecord(
                    name=metric_name(variant, n), value=interval.estimate, split=splits["test"],
                    n=len(tests["own"]), cell=chosen["own"], probe=PROBE,
                    controls={rung: _value(found, variant) for rung, found in others.items()}, detail=detail,
                )
            )  # fmt: skip
    return records


def _statistic(counts: NDArray[np.float64], variant: Averaging) -> SumStatistic:
    """Return the mean IoU as a statistic over images."""
    if variant == "per_image":
        return mean_of(mean_iou(counts))
    n_classes = counts.shape[-1]
    value: Callable[[NDArray[np.float64]], NDArray[np.float64]] = lambda sums: mean_iou(  # noqa: E731
        sums.reshape(-1, n_classes, n_classes)
    )
    return SumStatistic(parts=counts.reshape(len(counts), -1), value=value)


def _value(counts: NDArray[np.float64], variant: Averaging) -> float:
    return float(mean_iou(counts.sum(0))) if variant == "pooled" else float(mean_iou(counts).mean())


def summary_lines(result: RunResult) -> list[str]:
    """Return lines for people: the chosen cell by number of labels, with differences and classes."""
    lines = []
    for record in result.metrics:
        if record.split != result.config["data"]["test_split"]:
            continue
        lines.append(format_record(record))
        lines += [
            f"  minus {name}: {value:+.3f} [{low:+.3f}, {high:+.3f}]"
            for name, (value, low, high) in record.detail["differences"].items()
        ]
        lines.append("  IoU: " + ", ".join(f"{name} {v:.3f}" for name, v in record.detail["iou_pooled"].items()))
    return lines
