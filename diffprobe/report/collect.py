"""Find and read the result files of a folder."""

from collections.abc import Iterable
from pathlib import Path

from diffprobe.core.errors import DiffprobeError, RunFailed, SchemaError
from diffprobe.core.result import RESULT_FILE, RunResult, read_result


def collect(results_dir: Path | str) -> list[RunResult]:
    """Read every `result.json` below a folder, in the order of their paths.

    Raises: RunFailed if the folder does not exist or contains no result, SchemaError with every file that cannot be
        read: files are never skipped.
    """
    root = Path(results_dir)
    paths = sorted(root.rglob(RESULT_FILE))
    if not paths:
        raise RunFailed(
            f"no {RESULT_FILE} below '{root}'." if root.is_dir() else f"the folder '{root}' does not exist.",
            fix="run something first: diffprobe demo; or name the folder: --results DIR",
        )
    return read_results(paths)


def read_results(paths: Iterable[Path]) -> list[RunResult]:
    """Read the given result files. Raises: SchemaError with every file that cannot be read."""
    results, faults = [], []
    for path in paths:
        try:
            results.append(read_result(path))
        except DiffprobeError as error:
            faults.append(str(error))
    if faults:
        raise SchemaError(
            f"{len(faults)} result file(s) cannot be read.",
            *(line for fault in faults for line in fault.splitlines()),
            fix="move them out of the folder, or make them again",
        )
    return results
