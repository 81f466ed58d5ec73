"""Records of dense heads on test images: scores with intervals over groups, and paired differences to the controls."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import SumStatistic, bootstrap_interval, mean_of, paired_interval
from diffprobe.core.result import MetricRecord
from diffprobe.generative.run_settings import DenseCounts
from diffprobe.metrics.dense import class_iou, depth_scores, mean_iou

_Array = NDArray[np.float64]


def dense_records(counts: DenseCounts, *, split: str, seed: int) -> list[MetricRecord]:
    """Return the records of a dense head.

    `miou_pooled` is the mean IoU over classes of the counts of all images together, `miou_per_image` the mean over
    images; of referring segmentation `oiou` (counts of all images) and `miou_per_image` are of the referred pixels
    alone. Depth has `rmse`, `abs_rel` and `delta1` over the pixels of all images, classification `accuracy`.

    Args:
        counts: see `DenseCounts`.
        split: the split of the images.
        seed: of the resampling.
    """
    records = []
    for name, statistic in _statistics(counts).items():
        own, n = statistic(counts.own), len(counts.own)
        found = bootstrap_interval(own, counts.groups, seed=seed)
        differences = {}
        for control, of_control in counts.controls.items():
            paired = paired_interval(own, statistic(of_control), counts.groups, seed=seed)
            differences[control] = [paired.estimate, paired.low, paired.high]
        detail: dict[str, Any] = {
            "interval": [found.low, found.high], "level": found.level, "n_groups": found.n_clusters,
            "differences": differences,
        }  # fmt: skip
        if name == "miou_pooled":
            detail["iou"] = _by_class(counts, counts.own)
            detail["control_iou"] = {control: _by_class(counts, one) for control, one in counts.controls.items()}
        controls = {
            control: bootstrap_interval(statistic(one), counts.groups, seed=seed, n_resamples=2).estimate
            for control, one in counts.controls.items()
        }
        records.append(
            MetricRecord(
                name=name, value=found.estimate, split=split, n=n, probe=counts.probe, controls=controls, detail=detail
            )
        )
    return records


def _statistics(counts: DenseCounts) -> dict[str, Callable[[_Array], SumStatistic]]:
    """Return what makes a statistic of the counts, by the name of the record."""
    if counts.task == "depth":

        def depth(key: str) -> Callable[[_Array], SumStatistic]:
            return lambda sums: SumStatistic(parts=sums, value=lambda totals: depth_scores(totals)[key])

        return {key: depth(key) for key in ("rmse", "abs_rel", "delta1")}
    if counts.task == "classification":
        return {"accuracy": lambda found: mean_of(found)}
    n = len(counts.classes)

    def square(sums: _Array) -> _Array:
        return sums.reshape(-1, n, n)

    def pooled(confusions: _Array, value: Callable[[_Array], _Array]) -> SumStatistic:
        return SumStatistic(parts=confusions.reshape(len(confusions), -1), value=lambda sums: value(square(sums)))

    if counts.task == "referring":
        return {
            "oiou": lambda found: pooled(found, lambda sums: class_iou(sums)[..., 1]),
            "miou_per_image": lambda found: mean_of(class_iou(found)[:, 1]),
        }
    return {
        "miou_pooled": lambda found: pooled(found, mean_iou),
        "miou_per_image": lambda found: mean_of(mean_iou(found)),
    }


def _by_class(counts: DenseCounts, confusions: _Array) -> dict[str, float]:
    iou = class_iou(confusions.sum(0))
    return {name: float(one) for name, one in zip(counts.classes, iou, strict=True) if not np.isnan(one)}
