"""The tables of the demo of `scenes`, for terminal and page: measures against planted rates, and qualities."""

from collections.abc import Sequence

import numpy as np

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.demo.scenes.run import ScenesOutcome
from diffprobe.report.pages.scenes import TextTable

_ABSENT = "n/a"
_MEASURES = {"spearman": "Spearman", "slope": "slope", "bias": "bias", "max_error": "max. error"}
_QUALITIES = (
    ("prompted_role", "role", "role as prompted"),
    ("half_committed", "texture", "half-committed textures"),
    ("sensitivity", "texture", "reader's sensitivity"),
    ("specificity", "texture", "reader's specificity"),
)
"""Metric, target, and head of the column."""


def find_record(result: RunResult, name: str, target: str) -> MetricRecord | None:
    """Return the record of a metric and target; None where it is not defined."""
    found = [record for record in result.metrics if (record.name, record.target) == (name, target)]
    return found[0] if found else None


def comparison_table(outcome: ScenesOutcome) -> TextTable:
    """Return each model's measures against its own and its sibling's planted rates, with intervals."""
    rows = []
    for one in outcome.twins:
        worlds = [one.twin.world, *(twin.world for twin in outcome.config.twins if twin.world != one.twin.world)]
        for world in worlds:
            of = "its own" if world == one.twin.world else "its sibling's"
            cells = [_shown(find_record(one.result, name, world)) for name in _MEASURES]
            permuted = find_record(one.result, "spearman", world)
            control = None if permuted is None else permuted.controls.get("permuted_roles")
            rows.append((one.name, f"{of} ({world})", *cells, _ABSENT if control is None else f"{control:+.2f}"))
    return TextTable(
        heads=("model", "planted rates", *_MEASURES.values(), "Spearman, permuted roles"), rows=tuple(rows)
    )


def quality_table(outcome: ScenesOutcome) -> TextTable:
    """Return what else is measured of each model, as shares with intervals."""
    rows = []
    for one in outcome.twins:
        rates = [record for record in one.result.metrics if record.name == "rate"]
        coverage = find_record(one.result, "coverage", one.twin.world)
        rows.append((
            one.name,
            f"{sum(record.n for record in rates):,}",
            *(_share(find_record(one.result, name, target)) for name, target, _ in _QUALITIES),
            _ABSENT if coverage is None else f"{round(coverage.value * coverage.n)} of {coverage.n}",
        ))  # fmt: skip
    return TextTable(
        heads=("model", "images", *(head for _, _, head in _QUALITIES), "intervals with the planted rate"),
        rows=tuple(rows),
    )


def notes(outcome: ScenesOutcome) -> tuple[str, ...]:
    """Return the sentences that belong to the tables: number of images, width of intervals, cap by ties."""
    config = outcome.config
    own = find_record(outcome.twins[0].result, "spearman", outcome.twins[0].twin.world)
    cap = "" if own is None else f" Ties of the planted rates cap Spearman at {own.detail['cap_by_ties']:.3f}."
    return (
        f"{config.n_per_role} images per role and model: a rate's 95 % interval is {mean_width(outcome):.2f} wide on "
        f"average. The full measurement (diffprobe eval rates) has more images.",
        f"Slope: of a line through generated against planted rates; 1 if they follow fully. Bias: their mean "
        f"difference. Permuted roles: 95 % of the permutations of the roles stay below.{cap}",
        "Half-committed: stripes of 20 to 60 % of the contrast that the renderer gives them. Sensitivity and "
        f"specificity of the reader are measured on {config.validated_per_role} images per role, labelled by the "
        "nearest re-rendering.",
    )


def mean_width(outcome: ScenesOutcome) -> float:
    """Return the mean width of the intervals of all rates of both models."""
    ends = [
        record.detail["interval"] for one in outcome.twins for record in one.result.metrics if record.name == "rate"
    ]
    return float(np.mean([high - low for low, high in ends]))


def as_lines(table: TextTable) -> list[str]:
    """Return a table as aligned lines for the terminal."""
    from diffprobe.core.columns import aligned

    rows: list[Sequence[str]] = [table.heads, *table.rows]
    return aligned(rows)


def _shown(record: MetricRecord | None) -> str:
    if record is None:
        return _ABSENT
    interval = record.detail.get("interval")
    ends = "" if interval is None else f" ({interval[0]:+.2f} to {interval[1]:+.2f})"
    return f"{record.value:+.2f}{ends}" if record.name != "max_error" else f"{record.value:.2f}"


def _share(record: MetricRecord | None) -> str:
    if record is None:
        return _ABSENT
    interval = record.detail.get("interval")
    ends = f" of {record.n}" if interval is None else f" ({interval[0]:.2f} to {interval[1]:.2f})"
    return f"{record.value:.2f}{ends}"
