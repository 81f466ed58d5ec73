"""The comparison of ways to steer, as Markdown and CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.markdown_table import markdown_table
from diffprobe.report.table import csv_value

TABLES_FILE, TABLE_FILE = "tables.md", "steering.csv"
"""Files beside the result."""
POINTS = ("success", "collateral", "distance")
"""Measures of each strength."""


def steering_tables(result: RunResult) -> str:
    """Return both tables: methods at equal collateral, and each strength of each method."""
    return f"{matched_table(result)}\n\n{curve_table(result)}\n"


def matched_table(result: RunResult) -> str:
    """Return the table of methods at equal collateral, a row for each factor and method."""
    records = [one for one in result.metrics if one.name == "matched_success"]
    rows = []
    for one in records:
        difference = one.detail.get("minus_prompt_edit")
        ends = one.detail.get("minus_prompt_edit_interval", (0.0, 0.0))
        untouched = _point(result.metrics, one, "success", 0.0)
        rows.append(
            [
                f"{one.target}={one.detail['value']}", str(one.probe), f"{untouched.value:.2f}",
                f"{one.detail['collateral']:.2f}" + ("" if one.detail["reaches"] else ", not reached"),
                _interval(one.value, one.detail["interval"]),
                "" if difference is None else f"{difference:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]",
                str(one.detail["chosen"]),
            ]
        )  # fmt: skip
    heads = ["wanted", "method", "untouched", "collateral", "success", "minus prompt edit", "chosen"]
    return markdown_table(heads, rows)


def curve_table(result: RunResult) -> str:
    """Return the table of all strengths, a row for each factor, method and strength."""
    rows = []
    for one in result.metrics:
        if one.name != "success":
            continue
        strength = float(one.detail["strength"])
        collateral, distance = (_point(result.metrics, one, name, strength) for name in POINTS[1:])
        rows.append(
            [
                f"{one.target}={one.detail['value']}", str(one.probe), f"{strength:g}",
                _interval(one.value, one.detail["interval"]),
                _interval(collateral.value, collateral.detail["interval"]), f"{distance.value:.2f}",
            ]
        )  # fmt: skip
    return markdown_table(["wanted", "method", "strength", "success", "collateral", "distance"], rows)


def write_csv(result: RunResult, path: Path) -> None:
    """Write all records, a row each."""
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["factor", "wanted", "method", "strength", "measure", "value", "low", "high", "images"])
        for one in result.metrics:
            low, high = one.detail.get("interval", ("", ""))
            cells = [one.target or "", one.detail["value"], one.probe or "", one.detail.get("strength", ""), one.name,
                     one.value, low, high, one.n]  # fmt: skip
            writer.writerow([csv_value(cell) for cell in cells])


def _point(records: Sequence[MetricRecord], of: MetricRecord, name: str, strength: float) -> MetricRecord:
    return next(
        one for one in records
        if (one.name, one.target, one.probe, one.detail.get("strength")) == (name, of.target, of.probe, strength)
    )  # fmt: skip


def _interval(value: float, ends: Sequence[float]) -> str:
    return f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"
