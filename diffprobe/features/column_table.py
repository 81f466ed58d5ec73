"""A table of further text columns of the samples, joined by key, for the templates of conditions.

`features.columns` names it: for example the class that a zero-shot model predicts for each image.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffprobe.core.column_names import column_faults, describe_faults
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import ConfigError, nearest
from diffprobe.shards.annotation import has_value
from diffprobe.shards.annotation_table import table_rows

KEY, SOURCE, SPLIT = "key", "source", "split"
"""Columns of a table that templates cannot name: the key of the sample, the origin of its values, and its split."""
UNKNOWN_SOURCE = "table"
"""Origin of values in a table without a column `source`."""


@dataclass(frozen=True)
class ColumnTable:
    """Text columns by the key of the sample.

    Attributes:
        name: the file, as it was named.
        columns: column -> key -> value, without missing values.
        sources: key -> origin of its values ("zero_shot:MODEL"); {} for a table without that column.
    """

    name: str
    columns: dict[str, dict[str, str]]
    sources: dict[str, str]

    def values(self, column: str, keys: Sequence[str]) -> list[str | None]:
        """Return the values of samples; None for a sample that the table lacks."""
        found = self.columns[column]
        return [found.get(key) for key in keys]

    def used(self, named: Iterable[str]) -> tuple[str, ...]:
        """Return the columns of the table among some names, each once."""
        return tuple(name for name in dict.fromkeys(named) if name in self.columns)

    def source_of(self, column: str) -> str:
        """Return the origin of a column's values: "zero_shot:MODEL", or "table:COLUMN"; several joined by "+"."""
        found = sorted({self.sources[key] for key in self.columns[column] if key in self.sources})
        return "+".join(found) or f"{UNKNOWN_SOURCE}:{column}"

    def digest(self, columns: Sequence[str]) -> str:
        """Digest the values of some columns and their origins, whatever the order of rows and columns in the file."""
        values = {name: self.columns[name] for name in sorted(columns)}
        return digest_json({"columns": values, "sources": {name: self.source_of(name) for name in sorted(columns)}})


def read_columns(path: str) -> ColumnTable:
    """Read a table of columns.

    Args:
        path: `.csv`, `.tsv` (with a heading line) or `.jsonl` in UTF-8. The column `key` has the keys of the samples,
            `source` (if there is one) the origin of a row; all others but `split` are text columns.

    Raises: ShardError for a file that cannot be read as a table; ConfigError, with the line, without the column `key`,
        for an empty key or one that comes twice, a value that is not a text, and names that samples have already.
    """
    rows = table_rows(Path(path).expanduser())
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    if KEY not in names:
        raise ConfigError(
            f"features.columns='{path}' has no column '{KEY}' with the keys of the samples.",
            f"its columns: {', '.join(names[:30])}",
            fix="rename the column; predicted classes: diffprobe data predict SET --model MODEL --out FILE.csv",
        )
    columns = [name for name in names if name not in (KEY, SOURCE, SPLIT)]
    if faults := describe_faults(column_faults(columns)):
        raise ConfigError(f"features.columns='{path}': {faults[0]}.", *faults[1:10], fix="rename them in the table")
    if not columns:
        raise ConfigError(f"features.columns='{path}' has no column besides {', '.join(names)}.")
    found: dict[str, dict[str, str]] = {name: {} for name in columns}
    sources: dict[str, str] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        where = f"features.columns='{path}', line {line}"
        key = row.get(KEY)
        if not isinstance(key, str) or not key:
            raise ConfigError(f"{where}: '{KEY}' is {str(key)[:80]!r}, not the key of a sample.")
        if key in lines:
            raise ConfigError(f"{where}: the key '{key}' was already in line {lines[key]}.", fix="one line per sample")
        lines[key] = line
        for name in (*columns, SOURCE):
            value = row.get(name)
            if value is None or (isinstance(value, str) and has_value(value) is None):
                continue
            if not isinstance(value, str):
                raise ConfigError(f"{where}: column '{name}' is {str(value)[:80]!r}, not a text.")
            (sources if name == SOURCE else found[name])[key] = value
    return ColumnTable(path, found, sources)


def check_names(table: ColumnTable, attributes: Iterable[str], named: Sequence[str]) -> None:
    """Check that a table adds a column that is used, and none that the samples have.

    Args:
        table: the table of `features.columns`.
        attributes: names of the attributes of the samples.
        named: columns that the conditions name.

    Raises: ConfigError.
    """
    if both := [name for name in attributes if name in table.columns]:
        raise ConfigError(
            f"features.columns='{table.name}' has the column '{both[0]}', which is an attribute of the data.",
            fix="rename it in the table",
        )
    if not table.used(named):
        close = [near for name in named for near in nearest(name, table.columns)]
        raise ConfigError(
            f"features.columns='{table.name}' has no effect: the condition names {', '.join(named) or 'no column'}.",
            *([f"nearest: {', '.join(dict.fromkeys(close))}"] if close else []),
            f"columns of the table: {', '.join(table.columns)}",
            fix="name one of them in features.prompt, or remove features.columns",
        )
