"""Audit files: a rate per subject with an interval, as JSON. `certify` scores them, whoever made them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import SchemaError
from diffprobe.core.json_file import read_json_object

FORMAT = "diffprobe.audit/1"
"""The value of the key `format`."""


def write_audit(
    path: Path, rates: Mapping[str, tuple[float, float, float]], *, level: float, made_by: str | None = None
) -> None:
    """Write an audit file.

    Args:
        path: of the file; replaced if it exists.
        rates: subject -> rate, and the lower and upper end of its interval, 0..1.
        level: nominal coverage of the intervals, 0..1.
        made_by: what measured the rates.
    """
    tree = {
        "format": FORMAT,
        "level": level,
        "rates": {name: dict(zip(("rate", "low", "high"), one, strict=True)) for name, one in rates.items()},
        **({} if made_by is None else {"made_by": made_by}),
    }
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_audit_tree(path: Path) -> dict[str, Any]:
    """Return the content of an audit file, of which only the format is checked.

    Raises: FileNotFoundError; SchemaError for another format.
    """
    tree = read_json_object(path, fix=f'write {{"format": "{FORMAT}", "level": 0.95, "rates": {{...}}}}')
    if tree.get("format") != FORMAT:
        raise SchemaError(f"'{path}' has the format {tree.get('format')!r}, expected '{FORMAT}'.")
    return tree
