"""The lines under a table on its marks: ‡ compares intervals and p-values or point estimates, † is label injection."""

from collections.abc import Iterable, Sequence

from diffprobe.report.entry_tests import NO_PREDICTIONS, EntryTests, NullTest
from diffprobe.report.filled_table import Entry, TableData
from diffprobe.report.table_spec import TableSpec

BELOW: str = "‡"
"""Mark of a value that does not beat its controls."""
BELOW_CONTROL = f"{BELOW} does not beat the strongest control of the same entry."
"""Legend of the mark ‡ where point estimates are compared."""
INJECTED: str = "†"
"""Mark of a value of features whose prompt states something about the sample."""
_SHOWN = 3
"""Reasons that a line lists."""


def mark_line(table: TableData, measured: Sequence[Entry]) -> str:
    """Return the line on the mark ‡, without the mark: its meaning, and which entries compare point estimates.

    A table whose entries have tests has it even where no entry bears the mark, since it states their number; else it is
    empty without a marked entry.

    Args:
        table: the table.
        measured: its entries with a value.
    """
    compared = [entry for entry in measured if table.beats_controls(entry) is not None]
    conditions = _conditions(table.spec, [entry.tests for entry in compared if entry.tests is not None])
    if conditions:
        points = _points(table, compared)
        return f"does not beat its controls: {', or '.join(conditions)}." + (
            f" Point estimates alone are compared for {points}." if points else ""
        )
    if all(table.beats_controls(entry) for entry in compared):
        return ""
    plain = BELOW_CONTROL.removeprefix(f"{BELOW} ").removesuffix(".")
    return f"{plain}; point estimates are compared{_because(table, compared)}."


def injection_line(measured: Sequence[Entry]) -> str:
    """Return the line on the mark †, without the mark; empty if no entry bears it.

    Args:
        measured: the entries with a value.
    """
    marked = [entry for entry in measured if entry.injected]
    if not marked:
        return ""
    stated = list(dict.fromkeys(text for entry in marked for text in entry.injected))
    more = f" and {len(stated) - _SHOWN} more" if len(stated) > _SHOWN else ""
    return (
        f"label injection ({', '.join(stated[:_SHOWN])}{more}): the prompt states this of each sample, so the value "
        f"measures the prompt as well as the image ({len(marked)} of {_entries(len(measured))})."
    )


def _conditions(spec: TableSpec, tests: Sequence[EntryTests]) -> list[str]:
    marks, found = spec.marks, []
    differences = [one for test in tests for one in test.differences]
    if differences:
        units = dict.fromkeys((one.n_groups, one.unit) for one in differences)
        what = "; ".join(f"{n:,} {unit}" for n, unit in units)
        found.append(
            f"the {100 * marks.level:.4g}% interval of the paired difference from the strongest control does not "
            f"exclude 0 ({marks.resamples:,} resamples of {what})"
        )
    nulls = [test.null for test in tests if test.null is not None]
    if nulls:
        found.append(
            f"p against {_of(nulls)} is above {marks.rate:g}, adjusted for {_entries(nulls[0].n_tests)} by "
            f"Benjamini-Hochberg (smallest p that could have been: {max(null.smallest_p for null in nulls):.2g})"
        )
    return found


def _entries(n: int) -> str:
    return "1 entry" if n == 1 else f"{n:,} entries"


def _of(nulls: Iterable[NullTest]) -> str:
    return " or ".join(dict.fromkeys(null.of for null in nulls))


def _points(table: TableData, compared: Sequence[Entry]) -> str:
    """Return which controls of how many entries are compared by point estimates, and why; empty for none."""
    titles = {control.name: control.title for control in table.spec.controls}
    names: dict[str, int] = {}
    for entry in compared:
        for name in _controls_by_point(entry):
            names[name] = names.get(name, 0) + 1
    if not names:
        return ""
    n = len(compared)
    parts = [
        f"{titles.get(name, name.replace('_', ' '))}{'' if count == n else f' ({count} of {n} entries)'}"
        for name, count in names.items()
    ]
    return f"{', '.join(parts)}{_because(table, compared)}"


def _controls_by_point(entry: Entry) -> Iterable[str]:
    return entry.compared if entry.tests is None else entry.tests.points


def _because(table: TableData, compared: Sequence[Entry]) -> str:
    reasons = dict.fromkeys(
        reason
        for entry in compared
        for reason in ([table.no_tests or NO_PREDICTIONS] if entry.tests is None else entry.tests.points.values())
    )
    shown = list(reasons)[:_SHOWN]
    more = f"; and {len(reasons) - _SHOWN} more reasons" if len(reasons) > _SHOWN else ""
    return f": {'; '.join(shown)}{more}" if shown else ""
