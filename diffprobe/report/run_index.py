"""The index of runs: what the result files below a folder say, kept in a cache so that thousands are listed at once.

Result files alone are the record. The index holds a copy of each file that it has read and validated, with size, time
and file number; whatever differs from the folder is read anew, and without the index everything is. It is a file in the
cache folder, which can be removed at any time.
"""

import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from diffprobe.core.cache_folder import cache_root
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.collect import read_results, require_results

_VERSION = 1
"""Version of the index's layout and of what is validated; another one is rebuilt."""
_TABLE = "CREATE TABLE runs (path TEXT PRIMARY KEY, state TEXT NOT NULL, body TEXT NOT NULL)"


@dataclass(frozen=True, kw_only=True)
class IndexedRun:
    """One run below the folder."""

    path: str
    """Folder of the run, relative to the folder of the index; "." for that folder itself."""
    result: RunResult
    """Its record."""


@dataclass(frozen=True, kw_only=True)
class RunIndex:
    """The runs below a folder."""

    root: Path
    """The folder."""
    runs: tuple[IndexedRun, ...]
    """All runs whose result could be read, in the order of their paths."""
    unreadable: dict[str, str]
    """Result files that could not be read -> the reason."""
    n_read: int
    """Number of result files that were read now; the others were in the index."""

    def named(self, name: str) -> IndexedRun:
        """Return the run of a path or a name. Raises: RunFailed if there is none, or several of that name."""
        found = [run for run in self.runs if run.path == name.rstrip("/") or run.result.run == name]
        if len(found) != 1:
            what = f"{len(found)} runs are named '{name}'" if found else f"no run '{name}'"
            raise RunFailed(
                f"{what} below '{self.root}'.",
                *(run.path for run in found),
                fix="name the path below the folder; they are listed by: diffprobe runs list",
            )
        return found[0]


def open_index(folder: Path | str, *, use_cache: bool = True) -> RunIndex:
    """Read the runs below a folder; files that have not changed come from the index.

    Args:
        folder: the folder of runs.
        use_cache: False reads every result file, and leaves the index alone.

    Raises: RunFailed if the folder does not exist, holds no result, or has a subfolder that cannot be listed.
    """
    root = Path(folder)
    found = {_key(root, path): path for path in require_results(root)}
    file = index_file(root)
    known = dict(_load(file)) if use_cache else {}
    rows: dict[str, tuple[str, str]] = {}
    unreadable: dict[str, str] = {}
    n_read = 0
    for key, path in found.items():
        state = _state(path)
        if state is not None and known.get(key, ("",))[0] == state:
            rows[key] = known[key]
            continue
        n_read += 1
        try:
            (result,) = read_results([path])
        except DiffprobeError as error:
            unreadable[key] = "; ".join(line.strip() for line in error.details) or error.what
            continue
        # the state of before the reading: a file that was replaced meanwhile is read again next time
        rows[key] = (state or "", json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    if use_cache and rows != known:
        _save(file, rows)
    runs = tuple(IndexedRun(path=key, result=_result(body)) for key, (_, body) in rows.items())
    return RunIndex(root=root, runs=runs, unreadable=unreadable, n_read=n_read)


def index_file(folder: Path | str) -> Path:
    """Return the file of a folder's index, which need not exist."""
    return cache_root() / "runs" / f"{digest_json(os.path.abspath(folder))[:24]}.sqlite"


def _key(root: Path, path: Path) -> str:
    return path.parent.relative_to(root).as_posix()


def _state(path: Path) -> str | None:
    """Return what changes when a file is written anew; None if the file is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"


def _load(file: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield path -> state and body of an index; nothing of a missing, damaged or other one, which is rebuilt."""
    if not file.is_file():
        return
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as base:
            if base.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
                return
            rows = base.execute("SELECT path, state, body FROM runs").fetchall()
    except (sqlite3.Error, OSError):
        return
    for path, state, body in rows:
        yield path, (state, body)


def _save(file: Path, rows: dict[str, tuple[str, str]]) -> None:
    """Write an index in place of the old one; where that is not possible, there is none, and listing takes longer."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)
        with closing(sqlite3.connect(temporary)) as base, base:
            base.execute(_TABLE)
            base.executemany("INSERT INTO runs VALUES (?, ?, ?)", [(path, *row) for path, row in rows.items()])
            base.execute(f"PRAGMA user_version = {_VERSION}")
        os.replace(temporary, file)
    except (sqlite3.Error, OSError):
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _result(body: str) -> RunResult:
    tree = json.loads(body)
    tree["metrics"] = tuple(MetricRecord(**record) for record in tree["metrics"])
    return RunResult(**tree)
