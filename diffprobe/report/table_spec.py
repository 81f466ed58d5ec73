"""The schema of `table.yaml`, and the search for these files. `table_data.py` fills a table from results.

Fields for rows, columns and filters: `metric`, `split`, `target`, `probe`, `cell` and its parts `tap`,
`timestep`, `condition`, `pool`; `kind`, `experiment`, `run`, `git_commit`; `config.<dotted key>` of the run.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from diffprobe.config.parse import parse
from diffprobe.config.search_path import display, roots
from diffprobe.core.errors import ConfigError, nearest
from diffprobe.core.terminal import one_line
from diffprobe.report.yaml_tree import read_yaml_tree

Value = str | int | float
MAX_TABLES = 100
"""Largest number of tables in one file."""
MAX_DECIMALS = 12
"""Largest number of printed digits after the point."""
MAX_DRAWS = 100_000
"""Largest number of resamples or permutations."""


@dataclass(frozen=True, kw_only=True)
class TableAxis:
    """One axis of a table: a field of the results and its values."""

    field: str
    """Field of the results: metric, target, tap, timestep, config.KEY, ..."""
    title: str = ""
    """Heading of the axis; the field's name if empty."""
    values: tuple[Value, ...] = ()
    """Values in order; those without a result are marked as missing. Empty: the values found, sorted."""
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    """Value -> text to print instead."""
    heading: str = "{value}"
    """Format of a value, for example "t = {value}"."""

    def label(self, value: Value) -> str:
        """Return the printed form of one value, in one line."""
        return one_line(self.heading.replace("{value}", self.labels.get(str(value), str(value))))


@dataclass(frozen=True, kw_only=True)
class ControlColumn:
    """A control in a column of its own."""

    name: str
    """Name in the results: raw_pixels, vae_latents, random_weights, text_encoder, shuffled_labels, chance, ..."""
    title: str
    """Heading of the column."""
    pick: Literal["max", "min", "mean"] = "max"
    """How the controls of a row's entries are combined; "max" is the strictest where higher is better."""
    compare: bool = True
    """Whether the mark ‡ compares entries with it. False for one that answers another question, such as a text encoder
    that reads the label in the caption."""


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """Format of printed numbers (CSV is never rounded)."""

    scale: float = 1.0
    """Factor before printing, 100 for percent."""
    decimals: int = 3
    """Digits after the point."""
    unit: str = ""
    """Unit after scaling, for the caption."""

    def __post_init__(self) -> None:
        if not 0 <= self.decimals <= MAX_DECIMALS or self.scale == 0 or not math.isfinite(self.scale):
            raise ConfigError(
                f"number: decimals={self.decimals} (0..{MAX_DECIMALS}) or scale={self.scale} (finite, not 0) is out of "
                "range."
            )

    def show(self, value: float, *, signed: bool = False) -> str:
        """Format one number; minus zero becomes zero."""
        text = f"{value * self.scale:+.{self.decimals}f}" if signed else f"{value * self.scale:.{self.decimals}f}"
        return text.replace("-", "") if float(text) == 0 and not signed else text


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published number of one entry."""

    where: dict[str, Value]
    """Field -> value for each row field and the column field: the entry."""
    value: float
    """The published number, in the unit of the metric (before scaling)."""
    tolerance: float
    """Largest difference of a successful replication, in the same unit."""
    source: str
    """Paper, table or figure, and row."""
    provenance: str
    """Origin of the value: read in the paper, from released code, from a third party, off a figure."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value) or not math.isfinite(self.tolerance) or self.tolerance < 0:
            raise ConfigError(
                f"published: value={self.value} (finite) or tolerance={self.tolerance} (at least 0) is out of range."
            )


@dataclass(frozen=True, kw_only=True)
class Marks:
    """How entries are compared with their controls, from kept predictions: what the mark ‡ means."""

    interval: Literal["percentile", "expanded"] = "expanded"
    """Bootstrap interval of paired differences; "expanded" covers with few groups too."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    resamples: int = 1000
    """Resamples of an interval, also of that of a chosen cell."""
    permutations: int = 1000
    """Permutations of the labels, by group, for p."""
    rate: float = 0.05
    """Largest p, adjusted for the number of entries, of an entry without the mark."""
    seed: int = 0
    """Seed of resamples and permutations."""

    def __post_init__(self) -> None:
        if not 0 < self.level < 1 or not 0 < self.rate < 1:
            raise ConfigError(f"marks: level={self.level} or rate={self.rate} is out of range: between 0 and 1.")
        for name, value in (("resamples", self.resamples), ("permutations", self.permutations)):
            if not 1 <= value <= MAX_DRAWS:
                raise ConfigError(f"marks: {name}={value} is out of range: 1 to {MAX_DRAWS:,}.")
        if self.seed < 0:
            raise ConfigError(f"marks: seed={self.seed} is out of range: at least 0.")


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table: its metric, axes and controls."""

    title: str
    """Short title."""
    caption: str = ""
    """Explanation of the numbers."""
    metric: str
    """Name of the metric in the results."""
    filter: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Field -> value, or list of allowed values. `experiment: emoji` matches all of emoji/..."""
    rows: tuple[TableAxis, ...]
    """Axes of the rows, outermost first."""
    columns: TableAxis
    """Axis of the columns."""
    controls: tuple[ControlColumn, ...] = ()
    """Control columns after the measured ones."""
    number: NumberFormat = NumberFormat()
    """Format of printed numbers."""
    higher_is_better: bool = True
    """Direction of the metric, for the best entry and the comparison with controls."""
    ranked: bool = True
    """Whether values are better or worse; false (for example L0) marks neither best entries nor controls."""
    select: Literal["none", "val"] = "none"
    """Which cell is the best: "val" prints the cell that is best on val, and its score on test, below the table."""
    exploratory: bool = False
    """Whether many cells may be compared on test. The table then says that it is exploratory."""
    marks: Marks = Marks()
    """How entries are compared with their controls."""
    missing: str = "n/a"
    """Text for a missing result or control."""
    published: tuple[Published, ...] = ()
    """Published numbers."""

    @property
    def uncompared(self) -> frozenset[str]:
        """The controls that the mark ‡ does not compare with."""
        return frozenset(control.name for control in self.controls if not control.compare)

    def __post_init__(self) -> None:
        axes = [axis.field for axis in (*self.rows, self.columns)]
        if not self.rows:
            raise ConfigError("rows is empty; a table needs at least one row axis.")
        if len(set(axes)) < len(axes):
            raise ConfigError(f"rows and columns use a field twice: {', '.join(axes)}.")
        if self.select == "val" and (self.filter.get("split") != "val" or not self.ranked or "split" in axes):
            raise ConfigError(
                f"select: val with filter.split={self.filter.get('split')!r} and ranked={self.ranked}.",
                "a cell is chosen among values on val, of which one is better than another",
                fix="filter: {split: val}; or leave select out",
            )
        for entry in self.published:
            if sorted(entry.where) != sorted(axes):
                raise ConfigError(
                    f"published value {entry.value}: 'where' has the fields {', '.join(entry.where) or '(none)'}.",
                    f"expected: one value for each axis: {', '.join(axes)}",
                )
            for axis in (*self.rows, self.columns):
                if axis.values and entry.where[axis.field] not in axis.values:
                    raise ConfigError(
                        f"published value {entry.value}: the table has no {axis.field} {entry.where[axis.field]!r}.",
                        f"values of the axis: {', '.join(map(repr, axis.values))}",
                    )

    def narrowed(self, where: Mapping[str, Any]) -> "TableSpec":
        """Return the table with further conditions in its filter; they replace those of the same field.

        On another split than val, no cell is chosen.
        """
        if not where:
            return self
        select = self.select if where.get("split", "val") == "val" else "none"
        return dataclasses.replace(self, filter={**self.filter, **where}, select=select)

    @property
    def heading(self) -> str:
        """The title as it is printed: an exploratory table says so."""
        return f"{self.title} (exploratory)" if self.is_exploratory else self.title

    @property
    def is_exploratory(self) -> bool:
        """Whether the table may compare many cells on test, and reads test."""
        return self.exploratory and self.reads_test()

    def reads_test(self) -> bool:
        """Return whether the filter lets numbers of test through."""
        split = self.filter.get("split", "test")
        return "test" in split if isinstance(split, (list, tuple)) else split == "test"


def load_spec(path: Path | str) -> TableSpec:
    """Read a `table.yaml` with one table. Raises: ConfigError with every error, its file and line, or for several."""
    found = load_specs(path)
    if len(found) > 1:
        raise ConfigError(f"{display(Path(path))} contains {len(found)} tables; expected: 1.")
    return found[0]


def load_specs(path: Path | str) -> tuple[TableSpec, ...]:
    """Read a `table.yaml`: one table, or a list `tables` that share the other keys of the file.

    Raises: ConfigError with every error, its file and line.
    """
    path = Path(path)
    tree, numbers = read_yaml_tree(path)
    lines = {key: (display(path), line) for key, line in numbers.items()}
    if not isinstance(tree, dict) or "tables" not in tree:
        return (parse(TableSpec, tree, lines),)
    shared = {key: value for key, value in tree.items() if key != "tables"}
    parts = tree["tables"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise ConfigError(f"{display(path)}: tables has to be a list of tables, each with its own keys.")
    if len(parts) > MAX_TABLES:
        raise ConfigError(f"{display(path)} has {len(parts):,} tables; at most {MAX_TABLES} are made.")
    return tuple(
        parse(TableSpec, {**shared, **part}, {**lines, **_lines_of_table(lines, i)}) for i, part in enumerate(parts)
    )


def _lines_of_table(lines: dict[str, tuple[str, int]], i: int) -> dict[str, tuple[str, int]]:
    """Return file and line of the keys of the i-th table."""
    start = f"tables[{i}]."
    return {key.removeprefix(start): place for key, place in lines.items() if key.startswith(start)}


def has_spec(name: str) -> bool:
    """Return whether an experiment has a `table.yaml`."""
    return name in _specs()


def _specs() -> dict[str, Path]:
    """Return the `table.yaml` of each experiment that has one, first match on the search path."""
    found: dict[str, Path] = {}
    for root in roots():
        folder = root / "experiments"
        for path in sorted(folder.rglob("table.yaml")):
            found.setdefault(path.parent.relative_to(folder).as_posix(), path)
    return found


def find_spec(name: str) -> Path:
    """Return the `table.yaml` of an experiment, first match on the search path.

    Raises: ConfigError with the available tables.
    """
    found = _specs()
    if name not in found:
        close = nearest(name, found, n=1)
        raise ConfigError(
            f"experiment '{name}' has no table.yaml.",
            *([f"nearest: {close[0]}"] if close else []),
            f"tables: {', '.join(sorted(found)) or '(none)'}",
        )
    return found[name]
