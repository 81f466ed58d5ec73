"""Read JSON that others wrote: every way in which it can be wrong gives one error that names the file and the cause.

Python's reader accepts NaN, keeps the last of two equal keys, and leaves deep nesting and endless numbers to exceptions
that do not say where they came from. Standard library only.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

from diffprobe.core.errors import DiffprobeError, SchemaError
from diffprobe.core.foreign import refuse_lfs_pointer, require_regular_file

MAX_BYTES = 256 * 2**20
"""Largest JSON file that is read, in bytes: an index of ten million samples is in other files."""
MAX_DEPTH = 64
"""Deepest nesting that is read; configurations and annotations have less than ten levels."""
_KINDS: dict[type, str] = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
_Value = TypeVar("_Value")


def read_json_file(
    path: Path | str,
    *,
    error: type[DiffprobeError] = SchemaError,
    fix: str | None = None,
    max_bytes: int = MAX_BYTES,
    non_finite: bool = False,
) -> Any:
    """Read a JSON file.

    Args:
        path: a regular file; pipes and devices are refused before they are opened.
        error: class of the error that is raised.
        fix: the next step of the user, for the error message.
        max_bytes: largest file that is read.
        non_finite: take NaN and Infinity, which are not JSON, but which Python's libraries write.

    Returns: the value.
    Raises: FileNotFoundError; `error` if the file is not a regular one, too large, not UTF-8, not JSON, has a key
        twice, NaN or infinity, or is nested deeper than `MAX_DEPTH`.
    """
    path = Path(path)
    size = require_regular_file(path, error=error, fix=fix)
    if size > max_bytes:
        raise error(f"'{path}' has {size:,} bytes, more than a JSON file may have ({max_bytes:,}).", fix=fix)
    return parse_json(path.read_bytes(), where=f"'{path}'", error=error, fix=fix, non_finite=non_finite)


def read_json_object(
    path: Path | str,
    *,
    error: type[DiffprobeError] = SchemaError,
    fix: str | None = None,
    max_bytes: int = MAX_BYTES,
    non_finite: bool = False,
) -> dict[str, Any]:
    """Read a JSON file that has to hold an object. Raises: as `read_json_file`; `error` for another value."""
    value = read_json_file(path, error=error, fix=fix, max_bytes=max_bytes, non_finite=non_finite)
    return expect(value, dict, where=f"'{path}'", error=error, fix=fix)


def parse_json(
    text: bytes | str,
    *,
    where: str,
    error: type[DiffprobeError] = SchemaError,
    fix: str | None = None,
    non_finite: bool = False,
) -> Any:
    """Parse JSON text. `where` names its place in the error message. Raises: `error`, see `read_json_file`."""
    begin = text[:64]
    begin = begin if isinstance(begin, bytes) else begin.encode("utf-8", "replace")
    refuse_lfs_pointer(begin, where, error=error, fix=fix)
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as cause:
            raise error(f"{where} is not a readable JSON file: not UTF-8, {cause.reason}.", fix=fix) from cause
    try:
        constant = float if non_finite else _refuse_constant
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=constant, parse_float=_finite)
    except RecursionError as cause:
        raise error(f"{where} is not a readable JSON file: nested too deeply.", fix=fix) from cause
    except ValueError as cause:
        said = "a number with too many digits" if "integer string conversion" in str(cause) else cause
        raise error(f"{where} is not a readable JSON file: {said}.", fix=fix) from cause
    if _deeper_than(value, MAX_DEPTH):
        raise error(f"{where} is not a readable JSON file: nested deeper than {MAX_DEPTH} levels.", fix=fix)
    return value


def expect(
    value: object, kind: type[_Value], *, where: str, error: type[DiffprobeError] = SchemaError, fix: str | None = None
) -> _Value:
    """Return `value` if it is of `kind`, a JSON type as Python has it. Raises: `error` with place and types."""
    if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    wanted = _KINDS.get(kind, kind.__name__)
    raise error(f"{where}: expected {wanted}, found {_KINDS.get(type(value), type(value).__name__)}.", fix=fix)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
        raise ValueError(f"key {twice[:80]!r} occurs twice in one object")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:40]} is too large for a number")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels + 1):
        level = [child for parent in level for child in _children(parent)]
    return bool(level)


def _children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
