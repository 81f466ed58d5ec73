"""Records of accuracies of caption choices: intervals over families, paired differences to controls, shares by
attribute.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import Interval, Method, bootstrap_interval, mean_of, paired_interval
from diffprobe.core.result import MetricRecord
from diffprobe.evaluation.gates import DIFFERENCES

BY = "by"
"""Key of `detail` with the accuracy for each value of each attribute."""
NO_VALUE = "(none)"
"""Stands for samples without a value of an attribute."""
METHOD: Method = "expanded"
"""Of all intervals: an attribute may be stated in a handful of families only, for which percentiles are too narrow."""


def accuracy_record(
    name: str,
    right: NDArray[np.float64],
    controls: Mapping[str, NDArray[np.float64]],
    *,
    split: str,
    families: Sequence[str],
    attributes: Sequence[Mapping[str, str]],
    by: Sequence[str],
    seed: int,
    detail: Mapping[str, Any],
) -> MetricRecord:
    """Return the accuracy of choices, with its controls.

    Args:
        name: name of the metric.
        right: 1 for each sample whose caption was chosen, else 0, shape (samples,).
        controls: per control the same of the same samples, or the probability of a right choice.
        families: independent units, which are resampled.
        attributes: attributes of each sample.
        by: attributes for whose values the accuracy is recorded too.
        seed: seed of the resampling.
        detail: further details.
    Returns: a record with `interval`, `level`, `differences` (accuracy minus control, paired) and `by` in its detail;
        samples of one family have neither interval nor differences.
    """
    found: dict[str, Any] = dict(detail)
    if len(set(families)) > 1:
        whole = bootstrap_interval(mean_of(right), families, seed=seed, method=METHOD)
        found |= {"interval": [whole.low, whole.high], "level": whole.level, "interval_method": METHOD}
        found[DIFFERENCES] = {
            control: _difference(paired_interval(mean_of(right), mean_of(values), families, seed=seed, method=METHOD))
            for control, values in controls.items()
        }
    if by:
        found[BY] = {
            attribute: _accuracies([sample.get(attribute, NO_VALUE) for sample in attributes], right, controls)
            for attribute in by
        }
    means = {control: _mean(values) for control, values in controls.items()}
    return MetricRecord(name=name, value=_mean(right), split=split, n=len(right), controls=means, detail=found)


def _mean(values: NDArray[np.float64]) -> float:
    return math.fsum(values) / len(values)  # of equal values exactly that value


def _difference(interval: Interval) -> dict[str, Any]:
    return {
        "estimate": interval.estimate, "low": interval.low, "high": interval.high, "level": interval.level,
        "n_groups": interval.n_clusters,
    }  # fmt: skip


def _accuracies(
    values: Sequence[str], right: NDArray[np.float64], controls: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    found = {}
    for value in sorted(set(values)):
        rows = np.array([other == value for other in values])
        found[value] = {
            "accuracy": _mean(right[rows]),
            "n": int(rows.sum()),
            "controls": {control: _mean(of_control[rows]) for control, of_control in controls.items()},
        }
    return found
