"""From denoising errors to what is reported of an autoencoder: the rise, the share recovered, and their intervals."""

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


def recovered(untouched: float, spliced: float, ablated: float) -> float:
    """Return 1 - (spliced - untouched) / (ablated - untouched): 1 costs nothing, 0 is as bad as mean ablation.

    Raises: EmptyClass if mean ablation does not raise the error: then there is nothing to recover.

    >>> recovered(1.0, 1.25, 2.0)
    0.75
    """
    if not ablated > untouched:
        raise EmptyClass(f"mean ablation does not raise the error: {untouched:.6g} before, {ablated:.6g} after.")
    return 1 - (spliced - untouched) / (ablated - untouched)


@dataclass(frozen=True, kw_only=True)
class Described:
    """What all records of one autoencoder share."""

    cell: Cell
    """The cell that the autoencoder was trained on, or the first of several of one tap."""
    several: bool = False
    """Whether there are several; what holds over all timesteps is then recorded under no cell."""
    split: str
    """Split of the samples."""
    probe: str
    """Name of the autoencoder's variant."""
    clusters: Sequence[Hashable]
    """The cluster of each sample, for the bootstrap."""
    seed: int = 0
    """Seed of the bootstrap."""
    detail: dict[str, Any]
    """What else is true of all of them."""


def spliced_records(baseline: Baseline, spliced: Spliced, about: Described) -> list[MetricRecord]:
    """Make the records of one autoencoder.

    For each timestep `delta_mse`, `recovered` and `fvu`, in the cell of that timestep; over all of them, under the
    autoencoder's own cell (none where it has several), `delta_mse_overall` and `recovered_overall`, errors averaged
    over timesteps first. Each but `fvu` has a bootstrap interval over samples. Where mean ablation does not raise the
    error there is no `recovered`, and the `delta_mse` beside it says so.

    Raises: ConfigError with fewer than two clusters.
    """
    n = len(baseline.untouched)
    records = []
    for column, t in enumerate(baseline.timesteps):
        at = replace(about, cell=replace(about.cell, timestep=t))
        records += _records("", [column], baseline, spliced, at)
        records.append(
            MetricRecord(
                name="fvu",
                value=spliced.fvu[column],
                split=about.split,
                n=n,
                cell=at.cell.name,
                probe=about.probe,
                controls={"mean_prediction": 1.0},
                detail={**about.detail, "timestep": t},
            )
        )
    return records + _records("_overall", list(range(len(baseline.timesteps))), baseline, spliced, about)


def _records(
    suffix: str, columns: list[int], baseline: Baseline, spliced: Spliced, about: Described
) -> list[MetricRecord]:
    def mean_of(errors: Any) -> NDArray[np.float64]:
        return np.asarray(errors[:, columns].numpy().mean(1))

    before, after, ablated = mean_of(baseline.untouched), mean_of(spliced.errors), mean_of(baseline.ablated)
    detail = {
        **about.detail,
        "timesteps": [baseline.timesteps[column] for column in columns],
        "mse": float(before.mean()),
    }

    def record(name: str, controls: dict[str, float], statistic: Callable[[NDArray[np.int64]], float]) -> MetricRecord:
        interval = bootstrap_interval(statistic, about.clusters, seed=about.seed)
        spread = {
            "interval": [interval.low, interval.high],
            "level": interval.level,
            "n_clusters": interval.n_clusters,
            "n_undefined": interval.n_undefined,
        }
        return MetricRecord(
            name=name + suffix,
            value=interval.estimate,
            split=about.split,
            n=len(before),
            cell=None if about.several and suffix else about.cell.name,
            probe=about.probe,
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
            lambda rows: recovered(before[rows].mean(), after[rows].mean(), ablated[rows].mean()),
        )
    except EmptyClass as error:
        return [replace(rise, detail={**rise.detail, "no_recovered": error.what})]
    return [rise, share]
