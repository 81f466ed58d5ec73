"""Read captions, classes and attributes of image files from a CSV or JSONL table.

One column names the files; `caption` (or `text`), `captions`, `class_name` (or `class`) and `label` have their meaning,
and every further column is an attribute.
"""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from diffprobe.core.column_names import column_faults, describe_faults
from diffprobe.core.errors import DiffprobeError, ShardError
from diffprobe.core.foreign import refuse_lfs_pointer, require_regular_file
from diffprobe.core.json_file import parse_json
from diffprobe.shards.annotation import has_value
from diffprobe.shards.shard_names import more_lines

FILE_COLUMNS = ("file_name", "filename", "file", "image", "image_path", "path")
"""Names of the column that names the files, the first one that the table has."""
_MEANINGS = {
    "caption": "caption", "text": "caption", "captions": "captions", "class_name": "class_name", "class": "class_name",
    "label": "label",
}  # fmt: skip
"""Column -> the key of a sample's annotation."""
_SHOWN = 10
Record = dict[str, object]
"""An annotation as the JSON of a sample holds it: caption, captions, class_name, label, attributes."""


def read_table(path: Path, *, file_column: str | None = None) -> dict[str, Record]:
    """Read a table.

    Args:
        path: `.csv`, `.tsv` (with a heading line) or `.jsonl` (one object per line), in UTF-8.
        file_column: the column that names the files; the first of `FILE_COLUMNS` if None.

    Returns: file name with slashes -> its annotation, without missing values.
    Raises: ShardError, with the line, for another format, a missing or empty file name, a file named twice, two
        columns of one meaning, values that are nested, and columns that cannot be attributes.
    """
    rows = table_rows(path)
    columns: dict[str, None] = {}
    for _, row in rows:
        columns.update(dict.fromkeys(row))
    names = list(columns)
    chosen = file_column or next((name for name in FILE_COLUMNS if name in columns), None)
    if chosen is None or chosen not in columns:
        wanted = f"'{file_column}'" if file_column else f"one of {', '.join(FILE_COLUMNS)}"
        raise ShardError(
            f"'{path}' has no column that names the files (expected: {wanted}).",
            f"its columns: {', '.join(names[:30])}",
            fix="--file-column NAME",
        )
    meanings = {name: _MEANINGS[name] for name in names if name in _MEANINGS and name != chosen}
    for meaning in set(meanings.values()):
        same = [name for name in meanings if meanings[name] == meaning]
        if len(same) > 1:
            raise ShardError(f"'{path}' has several columns for {meaning}: {', '.join(same)}.", fix="keep one of them")
    attributes = [name for name in names if name != chosen and name not in meanings]
    if faults := describe_faults(column_faults(attributes)):
        raise ShardError(f"'{path}' has columns that cannot be attributes.", *faults[:_SHOWN], fix="rename them")
    found: dict[str, Record] = {}
    lines: dict[str, int] = {}
    for line, row in rows:
        where = f"'{path}', line {line}"
        name = row.get(chosen)
        if not isinstance(name, str) or has_value(name) is None:
            raise ShardError(f"{where}: column '{chosen}' does not name a file.", f"found: {str(name)[:80]!r}")
        name = PurePosixPath(name.strip()).as_posix()
        if name in found:
            raise ShardError(
                f"{where}: '{name}' was already named in line {lines[name]}.",
                fix="one line per file; several captions are a list: the column captions of a JSONL table",
            )
        found[name], lines[name] = _record(row, meanings, attributes, where), line
    return found


def match(names: list[str], table: dict[str, Record], path: Path) -> tuple[list[str], list[str]]:
    """Return one line per image that the table lacks, and one per file of the table that does not exist."""
    have = set(names)
    lacking = [f"{name}: not in the table '{path.name}'" for name in names if name not in table]
    missing = [f"{name}: in the table '{path.name}', but not an image of the folder" for name in table
               if name not in have]  # fmt: skip
    return lacking, missing


def _record(row: Record, meanings: dict[str, str], attributes: list[str], where: str) -> Record:
    record: Record = {}
    for name, value in row.items():
        if value is None or (isinstance(value, str) and has_value(value) is None):
            continue
        if isinstance(value, float) and math.isnan(value):
            continue
        meaning = meanings.get(name)
        if meaning == "captions":
            if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                raise ShardError(f"{where}: column 'captions' must be a list of texts, which only JSONL has.")
            record["captions"] = value
            continue
        if isinstance(value, dict | list):
            raise ShardError(f"{where}: column '{name}' must be one value, not {type(value).__name__}.")
        if meaning == "label":
            record["label"] = _label(value, where)
        elif meaning is not None:
            record[meaning] = value if isinstance(value, str) else json.dumps(value)
        elif name in attributes:
            held = record.setdefault("attributes", {})
            assert isinstance(held, dict)
            held[name] = value if isinstance(value, str) else json.dumps(value)
    captions = record.get("captions")
    if isinstance(captions, list) and captions and "caption" not in record:
        record["caption"] = captions[0]
    return record


def _label(value: object, where: str) -> int:
    text = value.strip() if isinstance(value, str) else value
    if isinstance(text, str) and text.isdecimal() and len(text) < 10:
        return int(text)
    if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
        return text
    raise ShardError(
        f"{where}: column 'label' is {str(value)[:40]!r}, expected an integer from 0.",
        fix="names of classes belong into a column class_name",
    )


def table_rows(path: Path) -> list[tuple[int, Record]]:
    """Return the rows of a `.csv`, `.tsv` or `.jsonl` table as column -> value, each with the line that it begins on.

    Raises: ShardError for another format, a missing file, text that is not UTF-8, or a table without rows.
    """
    ending = path.suffix.lower()
    if ending not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise ShardError(f"'{path}' is not a table that is read.", "read are .csv, .tsv and .jsonl")
    try:
        require_regular_file(path, error=ShardError)
    except FileNotFoundError as error:
        raise ShardError(f"table '{path}' not found.") from error
    content = path.read_bytes()
    refuse_lfs_pointer(content[:64], f"'{path}'", error=ShardError)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ShardError(f"'{path}', line {line}: not UTF-8 text.", fix="save the table as UTF-8") from error
    rows = list(_csv_rows(path, text) if ending in (".csv", ".tsv") else _json_rows(path, text))
    if not rows:
        raise ShardError(f"'{path}' has no row.")
    return rows


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if path.suffix.lower() == ".tsv" else ",",
                        strict=True)  # fmt: skip
    try:
        heading = [name.strip() for name in next(reader, [])]
        twice = sorted({name for name in heading if heading.count(name) > 1})
        if twice:
            raise ShardError(f"'{path}' has the column '{twice[0]}' twice.")
        line = reader.line_num + 1
        for row in reader:
            if row:
                if len(row) != len(heading):
                    raise ShardError(
                        f"'{path}', line {line}: {len(row)} values for {len(heading)} columns.",
                        fix="quote values that have a comma or a line break",
                    )
                yield line, dict(zip(heading, row, strict=True))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ShardError(f"'{path}', line {reader.line_num}: not readable as CSV ({error}).") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, Record]]:
    faults = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, where=f"'{path}', line {number}", error=ShardError, non_finite=True)
        except DiffprobeError as error:
            faults.append(error.what)
            continue
        if not isinstance(row, dict):
            raise ShardError(f"'{path}', line {number}: expected an object, found {type(row).__name__}.")
        yield number, row
    if faults:
        raise ShardError(
            f"{len(faults)} lines of '{path}' are not JSON.", *faults[:_SHOWN], *more_lines(faults, _SHOWN)
        )
