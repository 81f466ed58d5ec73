"""The steering of an audit from its result alone: the CSV file, and lines for the terminal."""

import csv
import io

from diffprobe.core.columns import aligned
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.core.terminal import one_line
from diffprobe.report.audit_table import interval_text
from diffprobe.report.table import csv_value

MEASURES = {"steering_rate": "rate", "steering_moved": "moved", "steering_distance": "distance"}
"""Name of a record -> how tables call it."""
COLUMNS = ("axis", "steered", "strength", "measure", "along", "value", "low", "high", "read", "images")


def steered_axes(result: RunResult) -> list[str]:
    """Return the axes that were steered, in their order."""
    return list(dict.fromkeys(one.target or "" for one in result.metrics if one.name == "steering_effect"))


def points_of(result: RunResult, axis: str, measure: str, along: str | None = None) -> dict[str, list[MetricRecord]]:
    """Return the records of a measure of one axis by steered direction, ascending in strength.

    Args:
        measure: a key of `MEASURES`.
        along: for `steering_moved`, the direction along which it is measured.
    """
    found: dict[str, list[MetricRecord]] = {}
    for one in result.metrics:
        if one.name == measure and one.target == axis and one.detail.get("along") == along:
            found.setdefault(one.detail["steered"], []).append(one)
    return {name: sorted(records, key=lambda one: one.detail["strength"]) for name, records in found.items()}


def render_steering_csv(result: RunResult) -> str:
    """Return the CSV file: a line per axis, steered direction, strength and measure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in result.metrics:
        if one.name in MEASURES:
            low, high = one.detail.get("interval") or ("", "")
            along, read = one.detail.get("along") or "", one.detail.get("read", "")
            cells = (one.target or "", one.detail["steered"], one.detail["strength"], MEASURES[one.name], along,
                     one.value, low, high, read, one.n)  # fmt: skip
            writer.writerow([csv_value(cell) for cell in cells])
    return buffer.getvalue()


def steering_lines(result: RunResult) -> list[str]:
    """Return the rates by strength of each steered axis for the terminal; no line without steering."""
    lines = []
    for axis in steered_axes(result):
        effect = named(result, "steering_effect", axis)
        curves = points_of(result, axis, "steering_rate")
        lines.append(f"{one_line(axis)}, steered: rate of images, as perceived by {one_line(effect.detail['reader'])}")
        heads = ["steered", *(f"{one.detail['strength']:+g}" for one in next(iter(curves.values())))]
        rows = [[one_line(name), *(f"{one.value:.2f}" for one in records)] for name, records in curves.items()]
        lines += aligned([heads, *rows], [False] + [True] * (len(heads) - 1))
        null, interval = effect.detail["null"], interval_text(*(effect.detail["interval"] or (None, None)))
        lines += [
            f"effect {effect.value:+.3f} {interval}, p {null['p']:.2g} against {null['n']} random directions "
            f"(smallest attainable p {null['smallest_p']:.2g})",
            "",
        ]
    return lines


def named(result: RunResult, name: str, axis: str) -> MetricRecord:
    """Return the record of an axis, which has to exist."""
    return next(one for one in result.metrics if one.name == name and one.target == axis)
