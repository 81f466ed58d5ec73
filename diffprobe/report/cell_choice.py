"""Which cell is the best: chosen on val, scored once on test. A table that compares many cells on test is refused.

The best of many cells is too good on the split on which it was chosen, so a table of layers and timesteps is read on
val. Its interval, which needs predictions, is made by `runs/choice_interval.py`.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from diffprobe.core.errors import SelectionOnTest
from diffprobe.report.aggregation import Found
from diffprobe.report.entry_tests import NO_PREDICTIONS
from diffprobe.report.filled_table import ChosenCell, Entry, TableData
from diffprobe.report.query import CELL_FIELDS, field_of
from diffprobe.report.table_spec import TableAxis, TableSpec

_CELLS = ("cell", *CELL_FIELDS)
"""Fields whose values are cells, or parts of them."""
COVERAGE = ("features.taps", "features.timesteps", "features.snr", "probe.cell", "probe.grid", "probe.targets")
"""Settings of which cells and targets were measured, not of how."""
_NAMES = ("run", "experiment", "git_commit", "split")
"""Fields that name runs: cells that were measured by runs of several names are compared all the same."""


def compares_cells(found: Found, axes: Iterable[str]) -> bool:
    """Return whether results compare several cells: with one target and equal values on the axes that name no cell."""
    cells: dict[tuple[Any, ...], set[str]] = {}
    names = [name for name in ("target", *axes) if _keeps_apart(name)]
    for run, record in found:
        if record.cell is not None:
            key = tuple(str(field_of(run, record, name)) for name in names)
            cells.setdefault(key, set()).add(record.cell)
    return any(len(of_one) > 1 for of_one in cells.values())


def _keeps_apart(field: str) -> bool:
    return field not in (*_CELLS, *_NAMES) and not field.removeprefix("config.").startswith(COVERAGE)


def refuse_selection_on_test(table: TableData) -> None:
    """Refuse a table that compares many cells on test, unless it is exploratory.

    Raises: SelectionOnTest.
    """
    spec = table.spec
    found = [source for entry in table.entries() for source in entry.sources if source[1].split == "test"]
    if spec.exploratory or not compares_cells(found, [axis.field for axis in (*spec.rows, spec.columns)]):
        return
    cells = dict.fromkeys(record.cell for _, record in found)
    raise SelectionOnTest(
        f"table '{spec.title}' compares {len(cells)} cells on test: the best of them is too good.",
        "cells are compared on val, and test scores the one that was chosen there",
        "an exploratory table may compare them, and says that it is exploratory",
        fix="--where split=val; in table.yaml filter: {split: val} with select: val; or --exploratory, in table.yaml "
        "exploratory: true",
    )


def choose_cells(table: TableData, fill: Callable[[TableSpec], TableData | None]) -> tuple[ChosenCell, ...]:
    """Choose the best cell on val for each target and setting of a table, and read its score on test.

    Args:
        table: the table, filled with numbers of val.
        fill: fills a spec from the same results; None where they have no number for it.
    Returns: the chosen cells, in the order of the table; their intervals are not made here.
    """
    spec = table.spec
    axes = [axis for axis in (*spec.rows, spec.columns) if axis.field not in _CELLS]
    apart = _groups(table, axes)
    if all(len({entry.cell for entry in entries}) == 1 for entries in apart.values()):
        axes = [axis for axis in axes if _keeps_apart(axis.field)]
        apart = _groups(table, axes)
    pick = max if spec.higher_is_better else min
    chosen = []
    for labels, entries in apart.items():
        best = pick(entries, key=lambda entry: entry.value if entry.value is not None else 0.0)
        chosen.append(
            ChosenCell(
                of=", ".join(labels), candidates=tuple(entries), val=best, test=_on_test(spec, best, fill),
                no_interval=NO_PREDICTIONS,
            )
        )  # fmt: skip
    return tuple(chosen)


def without_predictions(table: TableData, reason: str) -> TableData:
    """Return the table with the reason why its entries have no tests and its chosen cells no interval."""
    chosen = tuple(replace(one, interval=None, no_interval=reason) for one in table.chosen)
    return replace(table, chosen=chosen, no_tests=reason)


def _groups(table: TableData, axes: list[TableAxis]) -> dict[tuple[str, ...], list[Entry]]:
    """Return the measured entries with a cell by the labels of their values on some axes."""
    groups: dict[tuple[str, ...], list[Entry]] = {}
    for entry in table.entries():
        if entry.value is not None and entry.cell is not None:
            key = tuple(axis.label(entry.where[axis.field]) for axis in axes)
            groups.setdefault(key, []).append(entry)
    return groups


def _on_test(spec: TableSpec, best: Entry, fill: Callable[[TableSpec], TableData | None]) -> Entry | None:
    """Return the entry of the same place on test; None if it was not measured."""

    def only(axis: TableAxis) -> TableAxis:
        return replace(axis, values=(best.where[axis.field],))

    narrow = replace(
        spec, select="none", filter={**spec.filter, "split": "test", "cell": best.cell}, published=(),
        rows=tuple(map(only, spec.rows)), columns=only(spec.columns),
    )  # fmt: skip
    table = fill(narrow)
    return None if table is None else table.entries()[0]
