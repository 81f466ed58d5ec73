"""A filled table: rows of entries with their controls, blocks, and the cells that were chosen on val."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from diffprobe.core.failure import Failure
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.entry_tests import EntryTests
from diffprobe.report.published import Comparison
from diffprobe.report.table_spec import TableAxis, TableSpec, Value


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a table: a measured number, or a missing one."""

    where: dict[str, Value]
    """Field -> value of the row and column."""
    value: float | None = None
    """Mean over seeds, in the unit of the metric; None without a result."""
    spread: float | None = None
    """Standard deviation over seeds (ddof 1); None for one seed, and for seeds that all give one value."""
    n_seeds: int = 0
    """Number of seeds."""
    varied: tuple[str, ...] = ()
    """What the seeds vary (`aggregation.SEED_WORDS`); () for one seed, or where results do not record it."""
    n: int = 0
    """Number of samples (the smallest over seeds)."""
    n_classes: int | None = None
    """Number of classes with samples in the split (the smallest over seeds); None if not recorded."""
    is_far: bool = False
    """Whether the training of one of its probes stopped far from convergence, where results record that."""
    injected: tuple[str, ...] = ()
    """What the prompts of its features state of each sample, as results record it: "class_name", "zero_shot:MODEL"."""
    controls: dict[str, float]
    """Control name -> its value for this entry."""
    uncompared: frozenset[str] = frozenset()
    """Those of the controls that the mark ‡ does not compare with."""
    comparison: Comparison | None = None
    """Comparison with a published number, if there is one."""
    failure: Failure | None = None
    """The run that should have measured it and failed; None with a result, and where nothing was run."""
    sources: tuple[tuple[RunResult, MetricRecord], ...] = field(default=(), repr=False, compare=False)
    """The results that it is the mean of, one per seed."""
    control_sources: dict[str, tuple[tuple[RunResult, MetricRecord], ...]] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Control that was measured by runs of its own -> the results that it is the mean of."""
    tests: EntryTests | None = None
    """What kept predictions show of it beside its controls; None where they were not read."""

    @property
    def compared(self) -> dict[str, float]:
        """The controls that the mark ‡ compares with."""
        return {name: value for name, value in self.controls.items() if name not in self.uncompared}

    @property
    def cell(self) -> str | None:
        """The cell that it was measured in; None without a result, or for a number without a cell."""
        return self.sources[0][1].cell if self.sources else None

    @property
    def split(self) -> str | None:
        """The split that it was measured on; None without a result."""
        return self.sources[0][1].split if self.sources else None


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row: its values on the row axes, entries in column order, controls in the order of the spec."""

    values: tuple[Value, ...]
    entries: tuple[Entry, ...]
    controls: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class ChoiceInterval:
    """The interval of the score of a chosen cell, from resamples that each choose again."""

    low: float
    high: float
    """Its ends, in the unit of the metric."""
    level: float
    """Nominal coverage."""
    n_resamples: int
    """Number of resamples."""
    unit: str
    """What is resampled whole, in words: "values of 'family'", "single samples"."""
    n_groups: int
    """Number of groups on test."""
    optimism: float
    """By how much the best value on val is too good, in the unit of the metric."""
    share: float
    """Share of resamples in which this cell is the best."""


@dataclass(frozen=True, kw_only=True)
class ChosenCell:
    """The best cell on val of one target, and its score on test."""

    of: str
    """What it was chosen for, as the table prints it: target or settings; empty where the table has one choice."""
    candidates: tuple[Entry, ...]
    """The entries that it was chosen among, in the order of the table."""
    val: Entry
    """The best of them; the first of equal ones."""
    test: Entry | None
    """The same cell on test, with its controls there; None if it was not measured."""
    interval: ChoiceInterval | None = None
    """Interval of the score on test; None where there is none."""
    no_interval: str = ""
    """Why there is none."""


@dataclass(frozen=True, kw_only=True)
class TableData:
    """A filled table."""

    spec: TableSpec
    columns: tuple[Value, ...]
    rows: tuple[TableRow, ...]
    chosen: tuple[ChosenCell, ...] = ()
    """The cells that were chosen on val, where the spec asks for them: one for each target or setting."""
    no_tests: str = ""
    """Why entries have no tests against their controls; empty where they have, or where predictions were not read."""

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
        """Return whether an entry beats the controls that it is compared with; None without value, control or ranking.

        By its tests where it has them: the interval of the paired difference from the strongest control excludes 0, and
        the adjusted p is at most `marks.rate`. By point estimates for the controls that have no test.
        """
        if entry.value is None or not entry.compared or not self.spec.ranked:
            return None
        higher, tests = self.spec.higher_is_better, entry.tests
        points = entry.compared if tests is None else {name: entry.controls[name] for name in tests.points}
        if any(entry.value <= value if higher else entry.value >= value for value in points.values()):
            return False
        return tests is None or tests.passes(higher_is_better=higher, rate=self.spec.marks.rate)
