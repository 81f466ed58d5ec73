"""Loss recovered by an autoencoder: the rise of the denoising error, the share recovered, and their intervals.

`scoring/intervention_error.py` measures the errors.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import bootstrap_interval
from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import EmptyClass
from diffprobe.core.result import MetricRecord
from diffprobe.scoring.intervention_error import Baseline, Spliced


def loss_recovered(untouched: float, spliced: float, ablated: float) -> float:
    """Return 1 - (spliced - untouched) / (ablated - untouched): 1 for no cost, 0 for the cost of mean ablation.

    Raises: EmptyClass if mean ablation does not raise the error: the share is not defined then.

    >>> loss_recovered(1.0, 1.25, 2.0)
    0.75
    """
    if not ablated > untouched:
        raise EmptyClass(f"mean ablation does not raise the error: {untouched:.6g} before, {ablated:.6g} after.")
    return 1 - (spliced - untouched) / (ablated - untouched)


@dataclass(frozen=True, kw_only=True)
class RecordContext:
    """Fields that all records of one autoencoder share."""

    cell: Cell
    """The cell that the autoencoder was trained on, or the first of several of one tap."""
    several: bool = False
    """Whether there are several; records over all timesteps then have no cell."""
    split: str
    """Split of the samples."""
    probe: str
    """Name of the variant."""
    clusters: Sequence[Hashable]
    """The cluster of each sample, for the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""
    detail: dict[str, Any]
    """Details of every record."""


def loss_recovered_records(baseline: Baseline, spliced: Spliced, context: RecordContext) -> list[MetricRecord]:
    """Return the records of one autoencoder.

    Per timestep: `delta_mse`, `recovered` and `fvu`, under the cell of that timestep. Over all timesteps, with errors
    averaged over them first: `delta_mse_overall` and `recovered_overall`, under the cell of the autoencoder (no cell if
    it has several). All but `fvu` have a bootstrap interval over samples. Where mean ablation does not raise the error,
    there is no `recovered`, and `delta_mse` states the reason in its detail `no_recovered`.

    Raises: ConfigError with fewer than two clusters.
    """
    n = len(baseline.untouched)
    records = []
    for column, t in enumerate(baseline.timesteps):
        at = replace(context, cell=replace(context.cell, timestep=t))
        records += _records("", [column], baseline, spliced, at)
        records.append(
            MetricRecord(
                name="fvu",
                value=spliced.fvu[column],
                split=context.split,
                n=n,
                cell=at.cell.name,
                probe=context.probe,
                controls={"mean_prediction": 1.0},
                detail={**context.detail, "timestep": t},
            )
        )
    return records + _records("_overall", list(range(len(baseline.timesteps))), baseline, spliced, context)


def _records(
    suffix: str, columns: list[int], baseline: Baseline, spliced: Spliced, context: RecordContext
) -> list[MetricRecord]:
    def mean_of(errors: Any) -> NDArray[np.float64]:
        return np.asarray(errors[:, columns].numpy().mean(1))

    before, after, ablated = mean_of(baseline.untouched), mean_of(spliced.errors), mean_of(baseline.ablated)
    detail = {
        **context.detail,
        "timesteps": [baseline.timesteps[column] for column in columns],
        "mse": float(before.mean()),
    }

    def record(name: str, controls: dict[str, float], statistic: Callable[[NDArray[np.int64]], float]) -> MetricRecord:
        interval = bootstrap_interval(statistic, context.clusters, seed=context.seed)
        spread = {
            "interval": [interval.low, interval.high],
            "level": interval.level,
            "n_clusters": interval.n_clusters,
            "n_undefined": interval.n_undefined,
        }
        return MetricRecord(
            name=name + suffix,
            value=interval.estimate,
            split=context.split,
            n=len(before),
            cell=None if context.several and suffix else context.cell.name,
            probe=context.probe,
            controls=controls,
            detail={**detail, **spread},
        )

    controls = {"mean_ablation": float((ablated - before).mean())}
    if baseline.cleared is not None:
        controls["whole_map_ablation"] = float((mean_of(baseline.cleared) - before).mean())
    rise = record("delta_mse", controls, lambda rows: float((after[rows] - before[rows]).mean()))
    try:
        share = record(
            "recovered",
            {"mean_ablation": 0.0},
            lambda rows: loss_recovered(before[rows].mean(), after[rows].mean(), ablated[rows].mean()),
        )
    except EmptyClass as error:
        return [replace(rise, detail={**rise.detail, "no_recovered": error.what})]
    return [rise, share]
