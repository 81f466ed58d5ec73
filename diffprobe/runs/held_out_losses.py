"""Records of the losses of held-out samples: what a change of the input costs, with paired intervals over groups."""

from typing import Any

import numpy as np

from diffprobe.analysis.statistics import Method, bootstrap_interval, mean_of, paired_interval
from diffprobe.core.result import MetricRecord
from diffprobe.generative.run_settings import HeldOutLosses

METHOD: Method = "expanded"
"""Of all intervals: validation splits may have few groups."""


def held_out_records(losses: HeldOutLosses, *, split: str, seed: int) -> list[MetricRecord]:
    """Return the record of the loss with its controls, and one record per change: loss after it minus loss before.

    Args:
        losses: losses of the samples.
        split: the split that they are from.
        seed: seed of the resampling.
    Returns: the record `caption_loss`, whose detail has `differences` (control minus loss, paired), and the records
        `cost_of_CHANGE`; each with `interval` and `level` in its detail. Samples of one group have no interval.
    """
    whole = np.asarray(losses.whole, dtype=np.float64)
    changed = {name: np.asarray(values, dtype=np.float64) for name, values in losses.changed.items()}
    n, spread = len(whole), len(set(losses.groups)) > 1
    detail: dict[str, Any] = {}
    if spread:
        found = bootstrap_interval(mean_of(whole), losses.groups, seed=seed, method=METHOD)
        detail = {"interval": [found.low, found.high], "level": found.level, "n_groups": found.n_clusters}
    controls = {name: values for name, values in changed.items() if name in losses.controls}
    costs = {
        name: {
            "cost": float((values - whole).mean()),
            **(_paired(values, whole, losses.groups, seed) if spread else {}),
        }
        for name, values in changed.items()
    }
    record = MetricRecord(
        name="caption_loss",
        value=float(whole.mean()),
        split=split,
        n=n,
        controls={name: float(values.mean()) for name, values in controls.items()},
        detail={**detail, "differences": {name: costs[name] for name in controls}},
    )
    return [
        record,
        *(
            MetricRecord(
                name=f"cost_of_{name}",
                value=cost["cost"],
                split=split,
                n=n,
                detail={**{key: value for key, value in cost.items() if key != "cost"},
                        "loss": float(changed[name].mean())},
            )
            for name, cost in costs.items()
            if name not in controls
        ),
    ]  # fmt: skip


def _paired(values: Any, whole: Any, groups: Any, seed: int) -> dict[str, Any]:
    found = paired_interval(mean_of(values), mean_of(whole), groups, seed=seed, method=METHOD)
    return {"interval": [found.low, found.high], "level": found.level, "n_groups": found.n_clusters}
