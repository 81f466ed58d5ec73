"""Records of `diffprobe eval correspondence`: PCK of every cell on val, and of the chosen one on test.

The cell is chosen on val by one named variant of PCK, and scored on test with an interval that chooses anew in each
resample. Each control that has several cells chooses its own in the same way, and so do the other features that are
matched beside the cells (CleanDIFT, fusions, mixtures): these have records of their own, by the name of the probe.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.pck import Matches, Variant, side_confusion
from diffprobe.analysis.statistics import Interval, bootstrap_interval, mean_of, paired_interval, selected_interval
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.evaluation.correspondence_settings import CorrespondenceEvaluation
from diffprobe.report.entry import format_record

PROBE = "nearest_neighbour"
"""Name of the probe in the records."""
SIDE_CONFUSION = "side_confusion"
"""Share of points with a partner on the other side whose match is nearer to the partner."""
FLIP_SWAP = "flip_swap"
"""The same share where each image is paired with its mirror image (`flip`): points that go to their own copy."""
CONTROLS = ("pixels", "vae_latents", "random_weights", "single_draw", "same_place")
"""Rungs that are controls of the cells; the others are features that are matched beside them."""
_OWN, _FUSED = "own", "fused"

Split = tuple[dict[str, dict[str, Matches]], list[int], NDArray[np.float64], NDArray[np.bool_]]
"""Rung -> cell -> matches; the clusters of the pairs; the partners of the points, and which points have one."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The matches of both splits."""

    val: Split
    """Of the split on which the cell is chosen."""
    test: Split
    """Of the other one."""
    names: Mapping[str, str]
    """"val" and "test" -> names of the splits."""
    notes: Mapping[str, Mapping[str, object]]
    """Rung -> further details of its records."""
    clusters: str
    """The attribute whose groups make the clusters, or "sample"."""


def correspondence_records(config: CorrespondenceEvaluation, measured: Measured) -> list[MetricRecord]:
    """Return the records: all cells on val, then the chosen cell on test with its controls.

    Raises: TooFewGroups for fewer than two clusters in a split.
    """
    records = []
    for cell, matches in measured.val[0][_OWN].items():
        for variant in config.variants:
            interval = _interval(matches, variant, measured.val[1], config.seed)
            place = _place(cell, config)
            records.append(
                _record(variant.name, interval, measured.names["val"], len(matches.name), place, _details(measured))
            )
    return records + _of_chosen(config, measured)


def _of_chosen(config: CorrespondenceEvaluation, measured: Measured) -> list[MetricRecord]:
    """Return the records of the chosen cell on test."""
    variant = config.selecting
    chosen = {rung: best_cell(cells, variant) for rung, cells in measured.val[0].items()}
    tests = {rung: measured.test[0][rung][cell] for rung, cell in chosen.items()}
    own, clusters = tests[_OWN], measured.test[1]
    cells = list(measured.val[0][_OWN])
    selected = selected_interval(
        [_statistic(measured.val[0][_OWN][cell], variant) for cell in cells],
        [("val", one) for one in measured.val[1]],
        [_statistic(measured.test[0][_OWN][cell], variant) for cell in cells],
        [("test", one) for one in clusters],
        seed=config.seed,
    )
    records = []
    for each in config.variants:
        interval = selected.interval if each == variant else _interval(own, each, clusters, config.seed)
        statistics = {rung: _statistic(found, each) for rung, found in tests.items() if rung in CONTROLS}
        values = {rung: _value(found, each) for rung, found in tests.items() if rung in CONTROLS}
        chance = own.chance(each)
        values["chance"] = float(_mean(own, chance, each))
        differences = {
            rung: paired_interval(_statistic(own, each), other, clusters, seed=config.seed)
            for rung, other in statistics.items()
        }
        detail = {
            **_details(measured),
            "selected_by": f"{variant.name} on {measured.names['val']}, among {len(cells)} cells",
            "control_cells": {rung: cell for rung, cell in chosen.items() if rung in CONTROLS and cell},
            "differences": {rung: [one.estimate, one.low, one.high] for rung, one in differences.items()},
            "by_point": own.by_name(own.correct(each)),
            **measured.notes.get(_OWN, {}),
        }
        place = _place(chosen[_OWN], config)
        records.append(
            _record(each.name, interval, measured.names["test"], len(own.name), place, detail, controls=values)
        )
    others = [
        record
        for rung in tests
        if rung not in (_OWN, *CONTROLS)
        for record in _beside(config, measured, tests, rung, chosen[rung])
    ]
    return records + _sides(config, measured, tests, chosen[_OWN]) + others


def _beside(
    config: CorrespondenceEvaluation, measured: Measured, tests: Mapping[str, Matches], rung: str, choice: str
) -> list[MetricRecord]:
    """Return the records of features that are matched beside the cells, with the difference to the chosen cell."""
    found, own, clusters = tests[rung], tests[_OWN], measured.test[1]
    cells = list(measured.val[0][rung])
    selected = selected_interval(
        [_statistic(measured.val[0][rung][cell], config.selecting) for cell in cells],
        [("val", one) for one in measured.val[1]],
        [_statistic(measured.test[0][rung][cell], config.selecting) for cell in cells],
        [("test", one) for one in clusters],
        seed=config.seed,
    )
    records = []
    for each in config.variants:
        interval = selected.interval if each == config.selecting else _interval(found, each, clusters, config.seed)
        above = paired_interval(_statistic(found, each), _statistic(own, each), clusters, seed=config.seed)
        notes = dict(measured.notes.get(rung, {}))
        weights = notes.pop("weights_by_state", None)
        if isinstance(weights, Mapping):
            notes["weights"] = weights[choice]
        detail = {
            **_details(measured),
            "selected_by": f"{config.selecting.name} on {measured.names['val']}, among {len(cells)} choices",
            "choice": choice,
            "above_nearest_neighbour": [above.estimate, above.low, above.high],
            "by_point": found.by_name(found.correct(each)),
            **notes,
        }
        values = {PROBE: _value(own, each), "chance": float(_mean(found, found.chance(each), each))}
        place = {"cell": choice if "@" in choice else None}
        n = len(found.name)
        records.append(
            _record(each.name, interval, measured.names["test"], n, place, detail, controls=values, probe=rung)
        )
    return records


def _sides(
    config: CorrespondenceEvaluation, measured: Measured, tests: Mapping[str, Matches], cell: str
) -> list[MetricRecord]:
    """Return the confusion of sides of the chosen cell; [] without points that have a partner."""
    _, clusters, partners, known = measured.test
    if not known.any():
        return []
    values: dict[str, float] = {}
    found: Interval | None = None
    for rung, matches in tests.items():
        wrong, chosen = side_confusion(matches, partners, known)
        pairs = matches.pair[chosen]
        if rung == _OWN:
            found = bootstrap_interval(mean_of(wrong[chosen]), [clusters[pair] for pair in pairs], seed=config.seed)
        else:
            values[rung] = float(wrong[chosen].mean())
    assert found is not None, "the denoiser itself is always among the rungs"
    place = _place(cell, config)
    n = int(known.sum())
    name = FLIP_SWAP if config.flip else SIDE_CONFUSION
    return [_record(name, found, measured.names["test"], n, place, _details(measured), controls=values)]


def best_cell(cells: Mapping[str, Matches], variant: Variant) -> str:
    """Return the cell of the largest PCK, the first of equal ones."""
    return max(cells, key=lambda cell: _value(cells[cell], variant))


def _statistic(matches: Matches, variant: Variant) -> Any:
    return matches.statistic(matches.correct(variant), variant.per)


def _value(matches: Matches, variant: Variant) -> float:
    return _mean(matches, matches.correct(variant), variant)


def _mean(matches: Matches, values: NDArray[np.float64], variant: Variant) -> float:
    parts = matches.statistic(values, variant.per).parts.sum(axis=0)
    return float(parts[0] / parts[1])


def _interval(matches: Matches, variant: Variant, clusters: Sequence[int], seed: int) -> Interval:
    return bootstrap_interval(_statistic(matches, variant), clusters, seed=seed)


def _place(cell: str, config: CorrespondenceEvaluation) -> dict[str, Any]:
    """Return where a record is from: one cell, or those that are matched together."""
    return {"cell": None, "cells": list(config.fuse)} if cell == _FUSED else {"cell": cell}


def _details(measured: Measured) -> dict[str, Any]:
    return {"clusters": f"pairs of images, joined by {measured.clusters}"}


def _record(
    name: str,
    interval: Interval,
    split: str,
    n: int,
    place: Mapping[str, Any],
    detail: Mapping[str, Any],
    *,
    controls: Mapping[str, float] | None = None,
    probe: str = PROBE,
) -> MetricRecord:
    cells = {"cells": place["cells"]} if "cells" in place else {}
    return MetricRecord(
        name=name, value=interval.estimate, split=split, n=n, cell=place["cell"], probe=probe,
        controls=dict(controls or {}),
        detail={
            **detail, **cells, "interval": [interval.low, interval.high], "level": interval.level,
            "n_clusters": interval.n_clusters,
        },
    )  # fmt: skip


def _signed(interval: Sequence[float]) -> str:
    value, low, high = interval
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def summary_lines(result: RunResult) -> list[str]:
    """Return lines for people: the choice, and the records of the chosen cell with differences and points."""
    test = [record for record in result.metrics if record.split == result.config["data"]["test_split"]]
    lines = [f"chosen by {test[0].detail['selected_by']}: {test[0].cell or ' + '.join(test[0].detail['cells'])}"]
    published = result.config.get("published") or {}
    for record in test:
        lines.append(format_record(record))
        if record.name == published.get("metric") and record.probe == PROBE:
            delta = record.value - published["value"]
            lines.append(f"  published {published['value']:.4g} ({published['source']}), delta {delta:+.4f}")
        above = record.detail.get("above_nearest_neighbour")
        if above is not None:
            lines.append(f"  {record.detail['choice']}, minus the chosen cell: {_signed(above)}")
        found = record.detail.get("differences", {})
        lines += [
            f"  minus {name}: {value:+.3f} [{low:+.3f}, {high:+.3f}]" for name, (value, low, high) in found.items()
        ]
        if "by_point" in record.detail:
            lines.append("  " + ", ".join(f"{name} {value:.3f}" for name, value in record.detail["by_point"].items()))
    return lines
