"""Intervals of the accuracies that are measured during a training, and of their paired differences."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import bootstrap_interval, mean_of, paired_interval
from diffprobe.core.errors import TooFewGroups
from diffprobe.core.result import MetricRecord
from diffprobe.generative.run_settings import ProbedImages


def with_intervals(records: Sequence[MetricRecord], probed: ProbedImages, *, seed: int) -> list[MetricRecord]:
    """Return the records with 95 % intervals in their detail, from resampling the groups of images.

    `interval` is that of the last accuracy, `rise` has that of the accuracy of each step minus that of step 0, and
    `differences` that of the last accuracy minus that of raw pixels, both on the same images. They hold for these
    weights and classifiers. With fewer than two groups nothing is added.

    Args:
        records: records of `probed_training`, each with a cell and a target.
        probed: the images behind them.
        seed: of the resampling.
    """
    return [replace(record, detail={**record.detail, **_intervals(record, probed, seed)}) for record in records]


def _intervals(record: MetricRecord, probed: ProbedImages, seed: int) -> dict[str, object]:
    right = probed.right[record.cell or "", record.target or ""].astype(np.float64)

    def paired(own: NDArray[np.float64], other: NDArray[np.float64]) -> list[float]:
        found = paired_interval(mean_of(own), mean_of(other), probed.groups, seed=seed)
        return [found.low, found.high]

    try:
        last = bootstrap_interval(mean_of(right[-1]), probed.groups, seed=seed)
    except TooFewGroups:
        return {}
    pixels = probed.raw_pixels[record.target or ""].astype(np.float64)
    return {
        "interval": [last.low, last.high], "level": last.level, "n_groups": last.n_clusters,
        "rise": [paired(step, right[0]) for step in right],
        "differences": {"raw_pixels": paired(right[-1], pixels)},
    }  # fmt: skip
