"""Filling of tables: from results to entries, with seeds, controls, missing entries and published numbers.

A table is a pure function of results and its spec; it does not depend on the order, dates or paths of results.
"""

import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diffprobe.core.errors import RunFailed
from diffprobe.core.result import RunResult
from diffprobe.report.aggregation import Found, control_of, differing_inputs, differing_settings, one_per_seed
from diffprobe.report.published import Comparison, compare, find_published
from diffprobe.report.query import CELL_FIELDS, field_of, matches
from diffprobe.report.table_spec import TableAxis, TableSpec, Value

# settings in which a control may differ from its run: those that define it, and the other cells that were measured
_FREE_OF_CONTROLS = (
    "backbone.random_", "features.taps", "features.timesteps", "features.snr", "probe.cell", "probe.grid",
    "probe.params.controls",
)  # fmt: skip
_FREE_OF_PIXELS = ("backbone.", "features.")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a table: a measured number, or a missing one."""

    where: dict[str, Value]
    """Field -> value of the row and column."""
    value: float | None = None
    """Mean over seeds, in the unit of the metric; None without a result."""
    spread: float | None = None
    """Standard deviation over seeds (ddof 1); None for one seed."""
    n_seeds: int = 0
    """Number of seeds."""
    n: int = 0
    """Number of samples (the smallest over seeds)."""
    n_classes: int | None = None
    """Number of classes with samples in the split (the smallest over seeds); None if not recorded."""
    controls: dict[str, float]
    """Control name -> its value for this entry."""
    comparison: Comparison | None = None
    """Comparison with a published number, if there is one."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row: its values on the row axes, entries in column order, controls in the order of the spec."""

    values: tuple[Value, ...]
    entries: tuple[Entry, ...]
    controls: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class TableData:
    """A filled table."""

    spec: TableSpec
    columns: tuple[Value, ...]
    rows: tuple[TableRow, ...]

    def entries(self) -> list[Entry]:
        """Return all entries, row by row."""
        return [entry for row in self.rows for entry in row.entries]

    def blocks(self) -> list[tuple[Value | None, list[TableRow]]]:
        """Split the rows by the outermost row axis; one block (None) where there is only one axis."""
        if len(self.spec.rows) == 1:
            return [(None, list(self.rows))]
        return [(value, list(rows)) for value, rows in itertools.groupby(self.rows, key=lambda row: row.values[0])]

    @property
    def inner_axes(self) -> tuple[TableAxis, ...]:
        """The row axes within a block: all but the outermost, or the only one."""
        return self.spec.rows[1:] or self.spec.rows

    def row_labels(self, row: TableRow) -> list[str]:
        """Return the labels of a row within its block, one per inner axis."""
        values = row.values[-len(self.inner_axes) :]
        return [axis.label(value) for axis, value in zip(self.inner_axes, values, strict=True)]

    def best(self, rows: Sequence[TableRow]) -> float | None:
        """Return the best measured value among some rows; None if values are not ranked."""
        if not self.spec.ranked:
            return None
        values = [entry.value for row in rows for entry in row.entries if entry.value is not None]
        return (max if self.spec.higher_is_better else min)(values, default=None)

    def beats_controls(self, entry: Entry) -> bool | None:
        """Return whether an entry beats all of its controls; None without value, control or ranking."""
        if entry.value is None or not entry.controls or not self.spec.ranked:
            return None
        if self.spec.higher_is_better:
            return entry.value > max(entry.controls.values())
        return entry.value < min(entry.controls.values())


def fill_table(results: Sequence[RunResult], spec: TableSpec) -> TableData:
    """Fill a table.

    Raises: RunFailed if no result passes the filter, or if an entry would mix different settings or contradictory
        results; ConfigError for an unknown field.
    """
    # canonical order, so that means do not depend on the order of files
    ordered = sorted(results, key=lambda run: (run.experiment, run.run, run.config_digest, run.started))
    conditions = {"metric": spec.metric, **spec.filter}
    records = [(run, record) for run in ordered for record in run.metrics if record.name == spec.metric]
    measured = [
        (run, record) for run, record in records if control_of(run) is None and matches(run, record, conditions)
    ]
    controls = [(run, record) for run, record in records if control_of(run) is not None]
    if not measured:
        raise _no_result(ordered, conditions)
    axes = [(axis, _axis_values(axis, measured)) for axis in (*spec.rows, spec.columns)]
    columns = axes[-1][1]
    rows = []
    for values in itertools.product(*(found for _, found in axes[:-1])):
        place = {axis.field: value for axis, value in zip(spec.rows, values, strict=True)}
        entries = tuple(_entry(spec, {**place, spec.columns.field: column}, measured, controls) for column in columns)
        if any(axis.values for axis in spec.rows) or any(entry.value is not None for entry in entries):
            rows.append(TableRow(values=values, entries=entries, controls=tuple(_row_controls(spec, entries))))
    return TableData(spec=spec, columns=columns, rows=tuple(rows))


def _entry(spec: TableSpec, where: dict[str, Value], measured: Found, control_runs: Found) -> Entry:
    found = one_per_seed([(run, rec) for run, rec in measured if matches(run, rec, where)], where)
    published = find_published(spec, where, found)
    if not found:
        return Entry(where=where, controls={}, comparison=compare(published, None))
    values = [record.value for _, record in found]
    value = statistics.fmean(values)
    controls = _merge_controls(where, found, _control_runs(spec, found, control_runs, where))
    if len(found) == 1:
        spread, n_seeds = found[0][1].spread, found[0][1].n_seeds
    else:
        spread, n_seeds = statistics.stdev(values), len(found)
    held = [record.detail["n_classes_held"] for _, record in found if "n_classes_held" in record.detail]
    return Entry(
        where=where, value=value, spread=spread, n_seeds=n_seeds, n=min(record.n for _, record in found),
        n_classes=min(held) if len(held) == len(found) else None,
        controls=controls, comparison=compare(published, value),
    )  # fmt: skip


def _control_runs(spec: TableSpec, found: Found, control_runs: Found, where: dict[str, Value]) -> dict[str, float]:
    """Return the mean over seeds of each control of an entry that was measured by runs of its own.

    The one cell of raw pixels is a control of all cells. A control is not filtered by settings that define it; among
    several matching runs, those that pass the filter are preferred.
    Raises: RunFailed for a control of this entry that was measured with other settings.
    """
    run, record = found[0]
    conditions = {**spec.filter, **{field: value for field, value in where.items() if field.startswith("config.")}}
    controls: dict[str, Found] = {}
    for control_run, control in control_runs:
        name = str(control_of(control_run))
        if (control.target, control.probe, control.split) != (record.target, record.probe, record.split):
            continue
        bound = {field: wanted for field, wanted in conditions.items() if not _is_exempt(name, field)}
        if (name == "raw_pixels" or control.cell == record.cell) and matches(control_run, control, bound):
            controls.setdefault(name, []).append((control_run, control))
    settings = {field: wanted for field, wanted in conditions.items() if field.startswith("config.")}
    for name, candidates in controls.items():
        nearest = [candidate for candidate in candidates if matches(*candidate, settings)]
        controls[name] = nearest or candidates
    for name, candidates in controls.items():
        for control_run, _ in candidates:
            differing = [
                (f"config.{key}", *values)
                for key, *values in differing_settings(run, control_run)
                # in an empty section all settings may differ
                if not _is_free(name, key) and values not in ([{}, None], [None, {}])
            ]
            differing += differing_inputs(run, control_run)
            if differing:
                raise RunFailed(
                    f"{where}: the control '{name}' was measured with other settings.",
                    *(f"{key}: {ours!r}, the control {theirs!r}" for key, ours, theirs in differing),
                    f"runs: {run.run}, {control_run.run}",
                    fix="measure the control with the settings of the run, and move the other one out of the folder",
                )
    return {
        name: statistics.fmean(control.value for _, control in one_per_seed(candidates, where))
        for name, candidates in controls.items()
    }


def _is_exempt(control: str, field: str) -> bool:
    """Return whether a filter on a field does not apply to a control: it is another run, and pixels another cell."""
    if field.startswith("config."):
        return _is_free(control, field.removeprefix("config."))
    return field == "run" or (control == "raw_pixels" and field in ("cell", *CELL_FIELDS))


def _is_free(control: str, key: str) -> bool:
    """Return whether a control may differ from its run in a setting (a dotted key of the configuration)."""
    return key.startswith(_FREE_OF_CONTROLS + (_FREE_OF_PIXELS if control == "raw_pixels" else ()))


def _merge_controls(where: dict[str, Value], found: Found, runs: dict[str, float]) -> dict[str, float]:
    names = sorted({name for _, record in found for name in record.controls})
    own = {n: statistics.fmean(rec.controls[n] for _, rec in found if n in rec.controls) for n in names}
    for name in own.keys() & runs.keys():
        if not math.isclose(own[name], runs[name], rel_tol=1e-9, abs_tol=1e-12):
            raise RunFailed(
                f"{where}: control '{name}' is {own[name]} in the result and {runs[name]} in a separate run."
            )
    return {**own, **runs}


def _row_controls(spec: TableSpec, entries: Sequence[Entry]) -> list[float | None]:
    picks: dict[str, Callable[[list[float]], float]] = {"max": max, "min": min, "mean": statistics.fmean}
    columns = [
        [entry.controls[control.name] for entry in entries if control.name in entry.controls]
        for control in spec.controls
    ]
    return [picks[n.pick](values) if values else None for n, values in zip(spec.controls, columns, strict=True)]


def _axis_values(axis: TableAxis, measured: Found) -> tuple[Value, ...]:
    if axis.values:
        return axis.values
    found = {field_of(run, record, axis.field) for run, record in measured}
    return tuple(sorted((value for value in found if value is not None), key=_natural))


def _natural(value: Value) -> tuple[Any, ...]:
    """Return a sort key that orders "up_blocks.10" after "up_blocks.2", and numbers before text."""
    if isinstance(value, (int, float)):
        return (0, value)
    return (1, [(part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", value)])


def _no_result(results: Sequence[RunResult], conditions: dict[str, Any]) -> RunFailed:
    lines = []
    for name, wanted in conditions.items():
        found = sorted({str(field_of(run, record, name)) for run in results for record in run.metrics})
        lines.append(f"{name}: expected {wanted}, results have {', '.join(found) or '(none)'}")
    return RunFailed(f"none of {len(results)} result file(s) passes the filter of the table.", *lines)
