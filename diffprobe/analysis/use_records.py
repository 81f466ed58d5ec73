"""The rise of the denoising error when a tap is ablated or patched, with intervals over groups, as records.

`scoring/tap_interventions.py` measures the errors. The name of the intervention is the record's `probe`, so that tables
by layer and timestep keep interventions apart.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import SumStatistic, bootstrap_interval, mean_of, ratio
from diffprobe.core.errors import EmptyClass
from diffprobe.core.result import MetricRecord

DELTA = "delta_mse"
"""Rise of the denoising error: mean over samples of the error with the intervention minus the untouched one."""
RELATIVE = "relative_delta_mse"
"""The same rise over the mean untouched error: 0.1 is a rise by 10 %."""


@dataclass(frozen=True, kw_only=True)
class UseContext:
    """What the records of one cell share."""

    cell: str
    """Name of the cell."""
    split: str
    """Split of the samples."""
    groups: Sequence[Hashable]
    """The group of each sample, for the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""
    detail: Mapping[str, Any]
    """Details of every record."""


def use_records(
    untouched: NDArray[np.float64],
    errors: Mapping[str, NDArray[np.float64]],
    described: Mapping[str, str],
    context: UseContext,
) -> list[MetricRecord]:
    """Return `delta_mse` and `relative_delta_mse` of each intervention at one cell.

    The interval of the relative rise resamples both its parts together.

    Args:
        untouched: error of each sample without intervention, shape (samples,).
        errors: intervention -> error of each sample, shape (samples,).
        described: intervention -> what it does, in words.
    Raises: TooFewGroups with fewer than two groups; EmptyClass if the untouched error is zero.
    """
    if not untouched.mean() > 0:
        raise EmptyClass(f"the untouched denoising error of {context.cell} is zero: no rise relative to it is defined.")
    records = []
    for name, changed in errors.items():
        rise = changed - untouched
        statistics = {
            DELTA: mean_of(rise),
            RELATIVE: SumStatistic(parts=np.stack([rise, untouched], axis=1), value=ratio),
        }
        for metric, statistic in statistics.items():
            interval = bootstrap_interval(statistic, context.groups, seed=context.seed)
            records.append(
                MetricRecord(
                    name=metric,
                    value=interval.estimate,
                    split=context.split,
                    n=len(untouched),
                    cell=context.cell,
                    probe=name,
                    detail={
                        **context.detail,
                        "intervention": described[name],
                        "mse": float(untouched.mean()),
                        "interval": [interval.low, interval.high],
                        "level": interval.level,
                        "n_clusters": interval.n_clusters,
                        "n_undefined": interval.n_undefined,
                    },
                )
            )
    return records
