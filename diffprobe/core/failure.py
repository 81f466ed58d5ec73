"""The note that a failed run leaves in its folder, so that a table can say "failed" where it would say "no result".

It counts only while there is no `result.json` beside it: a run that succeeds later needs to remove nothing.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import SchemaError
from diffprobe.core.json_file import expect, read_json_object
from diffprobe.core.result import RESULT_FILE

FAILURE_FILE = "failure.json"
KIND, SCHEMA_VERSION = "failure", 1
_MESSAGE = 500
"""Characters of a message that are kept."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A run that failed."""

    run: str
    """Name of the run: that of its folder."""
    experiment: str
    """Its experiment."""
    config: dict[str, Any]
    """Its configuration, as a result records it."""
    error: str
    """Class of the error."""
    message: str
    """First line of its message."""


def note_failure(folder: Path, config: Mapping[str, Any], error: BaseException) -> Path:
    """Write the note of a run that failed into its folder, and return its path.

    Args:
        folder: folder of the run; created if it does not exist.
        config: the configuration of the run, as JSON.
        error: what stopped it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = [line for line in str(error).splitlines() if line.strip()] or ["(no message)"]
    tree = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "run": folder.name,
        "experiment": config.get("experiment", ""),
        "config": dict(config),
        "error": type(error).__name__,
        "message": lines[0].strip()[:_MESSAGE],
    }
    path = folder / FAILURE_FILE
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return path


def read_failure(path: Path) -> Failure:
    """Read the note of a run that failed. Raises: SchemaError for another file or version."""
    tree = read_json_object(path)
    if (tree.get("kind"), tree.get("schema_version")) != (KIND, SCHEMA_VERSION):
        raise SchemaError(
            f"'{path}' is of kind {tree.get('kind')!r}, version {tree.get('schema_version')!r}.",
            f"expected: {KIND!r}, version {SCHEMA_VERSION}",
            fix="remove it; the run has no result without it either",
        )
    text = {
        name: expect(tree.get(name), str, where=f"'{path}': {name}")
        for name in ("run", "experiment", "error", "message")
    }
    return Failure(config=expect(tree.get("config"), dict, where=f"'{path}': config"), **text)


def failures_below(folder: Path | str) -> Iterator[Failure]:
    """Yield the failed runs below a folder that have no result, in the order of their paths.

    Raises: SchemaError for a note that cannot be read.
    """
    found = [
        Path(at) / FAILURE_FILE
        for at, _, files in os.walk(folder)
        if FAILURE_FILE in files and RESULT_FILE not in files
    ]
    yield from map(read_failure, sorted(found))
