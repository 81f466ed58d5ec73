"""Find and read the result files of a folder."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from diffprobe.core.errors import DiffprobeError, RunFailed, SchemaError
from diffprobe.core.result import RESULT_FILE, RunResult, read_result
from diffprobe.report.query import cells_of, parse_cell


def collect(results_dir: Path | str) -> list[RunResult]:
    """Read every `result.json` below a folder, in the order of their paths.

    Raises: RunFailed if the folder does not exist, contains no result, or has a subfolder that cannot be listed;
        SchemaError with every file that cannot be read: files are never skipped.
    """
    return read_results(require_results(results_dir))


def require_results(results_dir: Path | str) -> list[Path]:
    """Return the path of every `result.json` below a folder, sorted.

    Raises: RunFailed if the folder does not exist, contains no result, or has a subfolder that cannot be listed.
    """
    root = Path(results_dir)
    paths = sorted(_walk(root))
    if not paths:
        raise RunFailed(
            f"no {RESULT_FILE} below '{root}'." if root.is_dir() else f"the folder '{root}' does not exist.",
            fix="run something first: diffprobe demo; or name the folder: --results DIR",
        )
    return paths


def _walk(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:  # os.walk and rglob pass over a folder without permission
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise RunFailed(
                f"the folder '{error.filename}' cannot be listed: {error.strerror}.",
                fix="change its permissions, or name another folder: --results DIR",
            ) from error

    for folder, folders, files in os.walk(root, onerror=refuse):
        if RESULT_FILE in files or RESULT_FILE in folders:
            yield Path(folder) / RESULT_FILE


def read_results(paths: Iterable[Path]) -> list[RunResult]:
    """Read the given result files. Raises: SchemaError with every file that cannot be read."""
    results, faults = [], []
    for path in paths:
        try:
            results.append(_read(path))
        except DiffprobeError as error:
            faults.append(str(error))
    if faults:
        raise SchemaError(
            f"{len(faults)} result file(s) cannot be read.",
            *(line for fault in faults for line in fault.splitlines()),
            fix="move them out of the folder, or make them again",
        )
    return results


def _read(path: Path) -> RunResult:
    result = read_result(path)
    for i, record in enumerate(result.metrics):
        for cell in cells_of(record):
            try:
                parse_cell(cell)
            except DiffprobeError as error:
                raise SchemaError(f"'{path}, metrics[{i}]': {error.what}", *error.details) from error
    return result
