"""The schema of `table.yaml`. Owns what a table may ask for; `report/table_data.py` fills it from results.

Fields that rows, columns and filters can use: `metric`, `split`, `target`, `probe`, `cell` and its parts `tap`,
`timestep`, `condition`, `pool`; `kind`, `experiment`, `run`, `git_commit`; `config.<dotted key>` of the run.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from diffprobe.config.parse import parse
from diffprobe.config.search_path import display, roots
from diffprobe.core.errors import ConfigError, nearest

Value = str | int | float


@dataclass(frozen=True, kw_only=True)
class TableAxis:
    """One axis of a table: a field of the results and the values it runs over."""

    field: str
    """Field of the results, see the head of this file."""
    title: str = ""
    """Heading of the axis; the field's name if empty."""
    values: tuple[Value, ...] = ()
    """Values in order. Where given, a value without a result is marked as missing; empty = those found, in order."""
    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    """Value -> text to print instead."""
    heading: str = "{value}"
    """How a value is printed, for example "t = {value}"."""

    def label(self, value: Value) -> str:
        """Write one value of the axis for people."""
        return self.heading.replace("{value}", self.labels.get(str(value), str(value)))


@dataclass(frozen=True, kw_only=True)
class ControlColumn:
    """A control that stands beside every row."""

    name: str
    """Name in the results: raw_pixels, random_weights, shuffled_labels, chance, random_direction."""
    title: str
    """Heading of the column."""
    pick: Literal["max", "min", "mean"] = "max"
    """Which of the controls of a row's entries is printed; "max" is the strictest where higher is better."""


@dataclass(frozen=True, kw_only=True)
class NumberFormat:
    """How numbers are printed (CSV is never rounded)."""

    scale: float = 1.0
    """Factor before printing, 100 for percent."""
    decimals: int = 3
    """Digits after the point."""
    unit: str = ""
    """Unit after scaling, for the caption."""

    def __post_init__(self) -> None:
        if not 0 <= self.decimals <= 12 or self.scale == 0:
            raise ConfigError(f"decimals={self.decimals} must lie in 0..12 and scale={self.scale} must not be 0.")

    def show(self, value: float, *, signed: bool = False) -> str:
        """Write one number. Minus zero is written as zero."""
        text = f"{value * self.scale:+.{self.decimals}f}" if signed else f"{value * self.scale:.{self.decimals}f}"
        return text.replace("-", "") if float(text) == 0 and not signed else text


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number from elsewhere beside one entry."""

    where: dict[str, Value]
    """Field -> value, for each row field and the column field: the entry it belongs to."""
    value: float
    """The published number, in the unit of the metric (before scaling)."""
    tolerance: float
    """How far a faithful run may lie from it, in the same unit."""
    source: str
    """Paper, table or figure, and row."""
    provenance: str
    """How the number got here: read in the paper, from released code, from a third party, off a figure."""


@dataclass(frozen=True, kw_only=True)
class TableSpec:
    """One table: what is measured, along which axes, beside which controls."""

    title: str
    """Short title."""
    caption: str = ""
    """What the reader must know to read the numbers."""
    metric: str
    """Name of the metric in the results."""
    filter: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Field -> value or list of values that a result must have. `experiment: emoji` takes all of emoji/..."""
    rows: tuple[TableAxis, ...]
    """Axes of the rows, outermost first."""
    columns: TableAxis
    """TableAxis of the columns."""
    controls: tuple[ControlColumn, ...] = ()
    """Control columns after the measured ones."""
    number: NumberFormat = NumberFormat()
    """How numbers are printed."""
    higher_is_better: bool = True
    """Direction of the metric: decides bold entries and what counts as above a control."""
    ranked: bool = True
    """Whether one value is better than another; false prints no entry bold and marks none, as for L0."""
    missing: str = "n/a"
    """What stands where a result or a control is missing."""
    published: tuple[Published, ...] = ()
    """Numbers from elsewhere."""

    def __post_init__(self) -> None:
        axes = [axis.field for axis in (*self.rows, self.columns)]
        if not self.rows:
            raise ConfigError("rows is empty; a table needs at least one row axis.")
        if len(set(axes)) < len(axes):
            raise ConfigError(f"rows and columns use a field twice: {', '.join(axes)}.")
        for entry in self.published:
            if sorted(entry.where) != sorted(axes):
                raise ConfigError(
                    f"published value {entry.value}: 'where' names {', '.join(entry.where) or 'nothing'}.",
                    f"it must name each axis: {', '.join(axes)}",
                )


def load_spec(path: Path | str) -> TableSpec:
    """Read a `table.yaml` of one table. Raises: ConfigError with every fault, its file and line, or for several."""
    found = load_specs(path)
    if len(found) > 1:
        raise ConfigError(f"{display(Path(path))} holds {len(found)} tables; one is wanted here.")
    return found[0]


def load_specs(path: Path | str) -> tuple[TableSpec, ...]:
    """Read a `table.yaml`: one table, or below `tables` several that share the keys beside it.

    Raises: ConfigError with every fault, its file and line.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node, tree = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{display(path)} is not readable YAML.", *str(error).splitlines()) from error
    faults = [f"'{key}': lines {first} and {line}" for key, first, line in _given_twice(node, "")]
    if faults:
        raise ConfigError(f"{display(path)} gives a key twice, and only the last would count.", *faults)
    lines = {key: (display(path), line) for key, line in _lines(node, "")}
    if not isinstance(tree, dict) or "tables" not in tree:
        return (parse(TableSpec, tree, lines),)
    shared = {key: value for key, value in tree.items() if key != "tables"}
    parts = tree["tables"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise ConfigError(f"{display(path)}: tables is no list of tables, each with the keys that are its own.")
    return tuple(parse(TableSpec, {**shared, **part}, {**lines, **_own(lines, i)}) for i, part in enumerate(parts))


def _own(lines: dict[str, tuple[str, int]], i: int) -> dict[str, tuple[str, int]]:
    """Return the places of the keys of the i-th table."""
    start = f"tables[{i}]."
    return {key.removeprefix(start): place for key, place in lines.items() if key.startswith(start)}


def find_spec(name: str) -> Path:
    """Return the `table.yaml` of an experiment, first match on the search path.

    Raises: ConfigError with the tables there are.
    """
    found: dict[str, Path] = {}
    for root in roots():
        folder = root / "experiments"
        for path in sorted(folder.rglob("table.yaml")):
            found.setdefault(path.parent.relative_to(folder).as_posix(), path)
    if name not in found:
        close = nearest(name, found, n=1)
        raise ConfigError(
            f"experiment '{name}' has no table.yaml.",
            *([f"nearest: {close[0]}"] if close else []),
            f"tables: {', '.join(sorted(found)) or '(none)'}",
        )
    return found[name]


def _given_twice(node: yaml.Node | None, at: str) -> Iterator[tuple[str, int, int]]:
    """Yield each dotted key that one mapping has twice, with the lines of both, from 1."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            full, line = f"{at}.{key.value}" if at else str(key.value), key.start_mark.line + 1
            name = (key.tag, str(key.value))  # 1 and "1" are two keys
            if name in seen:
                yield full, seen[name], line
            seen[name] = line
            yield from _given_twice(value, full)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield from _given_twice(value, f"{at}[{i}]")


def _lines(node: yaml.Node | None, at: str) -> Iterator[tuple[str, int]]:
    """Yield each dotted key of a YAML tree with its line, from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            full = f"{at}.{key.value}" if at else str(key.value)
            yield full, key.start_mark.line + 1
            yield from _lines(value, full)
    elif isinstance(node, yaml.SequenceNode):
        for i, value in enumerate(node.value):
            yield f"{at}[{i}]", value.start_mark.line + 1
            yield from _lines(value, f"{at}[{i}]")
