"""Filling of tables: from results to entries, with seeds, controls, missing entries and published numbers.

A table is a pure function of results and its spec; it does not depend on the order, dates or paths of results.
"""

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from diffprobe.config.controls import has_one_cell
from diffprobe.core.errors import ConfigError, NonFinite, RunFailed
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.aggregation import Found, control_of, differing_inputs, differing_settings, one_per_seed, varied
from diffprobe.report.cell_choice import choose_cells, refuse_selection_on_test
from diffprobe.report.filled_table import Entry, TableData, TableRow
from diffprobe.report.published import compare, find_published
from diffprobe.report.query import CELL_FIELDS, field_of, matches
from diffprobe.report.table_spec import TableAxis, TableSpec, Value

# settings in which a control may differ from its run: those that define it, and the other cells that were measured
_FREE_OF_CONTROLS = (
    "backbone.random_", "features.taps", "features.timesteps", "features.snr", "probe.cell", "probe.grid",
    "probe.params.controls",
)  # fmt: skip
_FREE_OF_ONE_CELL: dict[str, tuple[str, ...]] = {
    "raw_pixels": ("backbone.", "features."),
    "vae_latents": ("backbone.denoiser_weights", "backbone.lora", "backbone.clean_input", "features."),
    "text_encoder": ("backbone.denoiser_weights", "backbone.clean_input", "features."),
}
"""Control with one cell -> settings in which it may differ: its features are the same whatever the run reads."""
MAX_ENTRIES = 100_000
"""Largest table that is made, in entries."""
_SHOWN = 20
"""Values of a field that a message lists."""


def fill_table(results: Sequence[RunResult], spec: TableSpec) -> TableData:
    """Fill a table.

    Raises: RunFailed if no result passes the filter, or if an entry would mix different settings or contradictory
        results; SelectionOnTest for many cells on test, unless the spec is exploratory; ConfigError for an unknown
        field.
    """
    table = _fill(results, spec)
    refuse_selection_on_test(table)
    if spec.select == "none":
        return table
    return replace(table, chosen=choose_cells(table, lambda on_test: _fill_measured(results, on_test)))


def _fill(results: Sequence[RunResult], spec: TableSpec) -> TableData:
    table = _fill_measured(results, spec)
    if table is None:
        raise _no_result(results, {"metric": spec.metric, **spec.filter})
    return table


def _fill_measured(results: Sequence[RunResult], spec: TableSpec) -> TableData | None:
    """Fill a table; None if no result passes its filter."""
    # canonical order, so that means do not depend on the order of files
    ordered = sorted(results, key=lambda run: (run.experiment, run.run, run.config_digest, run.started))
    conditions = {"metric": spec.metric, **spec.filter}
    records = [(run, record) for run in ordered for record in run.metrics if record.name == spec.metric]
    measured = [
        (run, record) for run, record in records if control_of(run) is None and matches(run, record, conditions)
    ]
    if not measured:
        return None
    axes = [(axis, _axis_values(axis, measured)) for axis in (*spec.rows, spec.columns)]
    _check_size(axes)
    columns = axes[-1][1]
    places = _Places(spec, measured)
    controls = _Controls(spec, [(run, record) for run, record in records if control_of(run) is not None])
    rows = []
    for values in itertools.product(*(found for _, found in axes[:-1])):
        place = {axis.field: value for axis, value in zip(spec.rows, values, strict=True)}
        entries = tuple(_entry(spec, {**place, spec.columns.field: column}, places, controls) for column in columns)
        if any(axis.values for axis in spec.rows) or any(entry.value is not None for entry in entries):
            rows.append(TableRow(values=values, entries=entries, controls=tuple(_row_controls(spec, entries))))
    return TableData(spec=spec, columns=columns, rows=tuple(rows))


def _check_size(axes: Sequence[tuple[TableAxis, tuple[Value, ...]]]) -> None:
    n = math.prod(len(values) for _, values in axes)
    if n > MAX_ENTRIES:
        raise RunFailed(
            f"the table would have {n:,} entries; at most {MAX_ENTRIES:,} are made.",
            *(f"{axis.field}: {len(values):,} values" for axis, values in axes),
            fix="name the values of its axes in table.yaml, or narrow it: --where FIELD=VALUE",
        )


class _Places:
    """The measured records by their place in the table, so that an entry does not search all of them."""

    def __init__(self, spec: TableSpec, measured: Found) -> None:
        # a value of `experiment` stands for a folder: it is compared, not looked up
        self._fields = [axis.field for axis in (*spec.rows, spec.columns) if axis.field != "experiment"]
        self._found: dict[tuple[Any, ...], Found] = {}
        for run, record in measured:
            key = _place_key(field_of(run, record, field) for field in self._fields)
            if key is not None:
                self._found.setdefault(key, []).append((run, record))

    def at(self, where: dict[str, Value]) -> Found:
        """Return the records of one entry."""
        found = self._found.get(_place_key(where[field] for field in self._fields) or (), [])
        folder = {name: value for name, value in where.items() if name == "experiment"}
        return [(run, record) for run, record in found if matches(run, record, folder)]


def _place_key(values: Iterable[Any]) -> tuple[Any, ...] | None:
    """Return what equal places have in common; True is not 1. None for a value that no axis has: a list, a block."""
    key = tuple((isinstance(value, bool), value) for value in values)
    return None if any(isinstance(value, (list, dict)) for _, value in key) else key


def _entry(spec: TableSpec, where: dict[str, Value], places: _Places, control_runs: "_Controls") -> Entry:
    found = one_per_seed(places.at(where), where)
    published = find_published(spec, where, found)
    if not found:
        return Entry(where=where, controls={}, comparison=compare(published, None))
    values = [record.value for _, record in found]
    of_controls = control_runs.of(found, where)
    means = {name: statistics.fmean(control.value for _, control in runs) for name, runs in of_controls.items()}
    controls = _merge_controls(where, found, means)
    try:
        value = statistics.fmean(values)
        if len(found) == 1:
            spread, n_seeds = found[0][1].spread or None, found[0][1].n_seeds
        else:  # seeds that all give one value vary nothing that it depends on: that is not a spread of 0
            spread, n_seeds = statistics.stdev(values) if len(set(values)) > 1 else None, len(found)
    except OverflowError:
        value, spread, n_seeds = math.inf, None, len(found)
    comparison = compare(published, value)
    _check_finite(spec, where, [value, spread, *controls.values(), comparison.delta if comparison else None])
    held = [record.detail["n_classes_held"] for _, record in found if "n_classes_held" in record.detail]
    return Entry(
        where=where, value=value, spread=spread, n_seeds=n_seeds, n=min(record.n for _, record in found),
        n_classes=min(held) if len(held) == len(found) else None,
        is_far=any(record.detail.get("far_from_convergence") is True for _, record in found),
        injected=tuple(dict.fromkeys(filter(None, (record.detail.get("label_injection") for _, record in found)))),
        controls=controls, uncompared=spec.uncompared, comparison=comparison, varied=varied(found),
        sources=tuple(found),
        control_sources={name: tuple(runs) for name, runs in of_controls.items()},
    )  # fmt: skip


def _check_finite(spec: TableSpec, where: dict[str, Value], numbers: Iterable[float | None]) -> None:
    """Refuse a number that is too large to print in the table's unit. Raises: NonFinite."""
    for number in numbers:
        if number is not None and not math.isfinite(number * spec.number.scale):
            raise NonFinite(
                f"{where}: {number} (times scale={spec.number.scale:g}) is too large for a number.",
                fix="the run diverged: move it out of the folder",
            )


class _Controls:
    """The records of control runs by what they are a control of."""

    def __init__(self, spec: TableSpec, records: Found) -> None:
        self._spec = spec
        # settings on an axis bind a control where it has them
        self._axes = [axis.field for axis in (*spec.rows, spec.columns) if axis.field.startswith("config.")]
        self._found: dict[tuple[Any, ...], Found] = {}
        self._names: dict[str, None] = {}
        for run, record in records:
            name = str(control_of(run))
            bound = {field: wanted for field, wanted in spec.filter.items() if not _is_exempt(name, field)}
            if not matches(run, record, bound):
                continue
            key = self._key(name, record, {field: field_of(run, record, field) for field in self._axes})
            if key is not None:
                self._names.setdefault(name)
                self._found.setdefault(key, []).append((run, record))

    def _key(self, name: str, record: MetricRecord, settings: dict[str, Any]) -> tuple[Any, ...] | None:
        place = _place_key(settings[field] for field in self._axes if not _is_exempt(name, field))
        cell = None if has_one_cell(name) else record.cell  # the one cell of raw pixels is a control of all cells
        return None if place is None else (name, record.target, record.probe, record.split, cell, place)

    def of(self, found: Found, where: dict[str, Value]) -> dict[str, Found]:
        """Return the results, one per seed, of each control of an entry that was measured by runs of its own.

        A control is not filtered by settings that define it; among several matching runs, those that pass the filter
        are preferred.
        Raises: RunFailed for a control of this entry that was measured with other settings.
        """
        run, record = found[0]
        conditions = {**self._spec.filter, **where}
        settings = {field: wanted for field, wanted in conditions.items() if field.startswith("config.")}
        controls: dict[str, Found] = {}
        for name in self._names:
            candidates = self._found.get(
                self._key(name, record, {field: where[field] for field in self._axes}) or (), []
            )
            candidates = [one for one in candidates if matches(*one, settings)] or candidates
            for control_run, _ in candidates:
                _check_settings(name, run, control_run, where)
            if candidates:
                controls[name] = one_per_seed(candidates, where)
        return controls


def _check_settings(name: str, run: RunResult, control_run: RunResult, where: dict[str, Value]) -> None:
    """Refuse a control of other settings or inputs than its run. Raises: RunFailed."""
    differing = differences_from_control(name, run, control_run)
    if differing:
        raise RunFailed(
            f"{where}: the control '{name}' was measured with other settings.",
            *(f"{key}: {ours!r}, the control {theirs!r}" for key, ours, theirs in differing),
            f"runs: {run.run}, {control_run.run}",
            fix="measure the control with the settings of the run, and move the other one out of the folder",
        )


def differences_from_control(name: str, run: RunResult, control_run: RunResult) -> list[tuple[str, Any, Any]]:
    """Return the settings and inputs in which a run and a control run differ beyond what makes it a control.

    Empty where it is a control of that run. Keys are those of the configuration below `config.`, or inputs.
    """
    differing = [
        (f"config.{key}", ours, theirs)
        for key, ours, theirs in differing_settings(run, control_run)
        # in an empty section all settings may differ
        if not _is_free(name, key) and [ours, theirs] not in ([{}, None], [None, {}])
    ]
    return differing + differing_inputs(run, control_run)


def _is_exempt(control: str, field: str) -> bool:
    """Return whether a filter on a field does not apply to a control: it is another run, and pixels another cell."""
    if field.startswith("config."):
        return _is_free(control, field.removeprefix("config."))
    return field == "run" or (has_one_cell(control) and field in ("cell", *CELL_FIELDS))


def _is_free(control: str, key: str) -> bool:
    """Return whether a control may differ from its run in a setting (a dotted key of the configuration)."""
    if control == "text_encoder" and key == "features.prompt":  # the text that is encoded
        return False
    return key.startswith(_FREE_OF_CONTROLS + _FREE_OF_ONE_CELL.get(control, ()))


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
    found: dict[Any, None] = {}
    for run, record in measured:
        value = field_of(run, record, axis.field)
        if isinstance(value, (list, dict)):
            raise ConfigError(
                f"field '{axis.field}' is {'a list' if isinstance(value, list) else 'a block'} in run '{run.run}'.",
                "an axis has single values: text or numbers",
            )
        found.setdefault(value)
    return tuple(sorted((value for value in found if value is not None), key=_natural))


def _natural(value: Value) -> tuple[Any, ...]:
    """Return a sort key that orders "up_blocks.10" after "up_blocks.2", and numbers before text."""
    if isinstance(value, (int, float)):
        return (0, value)
    parts = re.split(r"([0-9]+)", value)
    return (
        1,
        [
            (part.isdecimal(), len(part.lstrip("0")) if part.isdecimal() else 0, part.lstrip("0"), part)
            for part in parts
        ],
    )


def _no_result(results: Sequence[RunResult], conditions: dict[str, Any]) -> RunFailed:
    lines = []
    for name, wanted in conditions.items():
        found = sorted({str(field_of(run, record, name)) for run in results for record in run.metrics})
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        lines.append(f"{name}: expected {wanted}, results have {', '.join(found[:_SHOWN]) or '(none)'}{more}")
    return RunFailed(f"none of {len(results)} result file(s) passes the filter of the table.", *lines)
