"""How far a job is: a small file that training and extraction renew, and that `diffprobe jobs` reads.

It is written where $DIFFPROBE_HEARTBEAT names a file (the script of a submitted job does), by the main process only,
and each time as a whole, so that a reader never sees half of it.
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from diffprobe.core.artifact import write_json_atomic
from diffprobe.core.errors import DiffprobeError, SchemaError
from diffprobe.core.json_file import expect, read_json_object
from diffprobe.core.processes import is_main_process

VARIABLE = "DIFFPROBE_HEARTBEAT"
INTERVAL = 10.0
"""Seconds between two writings, at least."""
STALE = 300.0
"""Seconds without a writing after which a job is taken to hang, unless a single step takes long."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The content of the file."""

    what: str
    """train or extract."""
    unit: str
    """What is counted: steps, images."""
    done: int
    """Units that are done, those of earlier starts of the job included."""
    total: int
    """Units in all; 0 if not known."""
    seconds_left: float | None
    """Estimate from the mean speed since this start; None before the first unit."""
    written_at: float
    """Time of writing, in seconds since 1970."""
    stale_after: float
    """Seconds after `written_at` from which on something is wrong."""

    def is_stale(self, now: float) -> bool:
        """Return whether the file should have been renewed by now (seconds since 1970)."""
        return now - self.written_at > self.stale_after


class Heartbeat:
    """Counts units and renews the file; a `Bar`.

    Args:
        path: the file; None to write nothing.
        what: train or extract.
        unit: what is counted, in the plural.
        total: units in all.
        done: units that earlier starts have done.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        what: str,
        unit: str,
        total: int,
        done: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._path, self._clock = path, clock
        self._what, self._unit, self._total, self._first = what, unit, total, done
        self._done, self._started = done, clock()
        self._written = 0.0
        self.write()

    def update(self, n: int, /) -> None:
        """Count `n` units, and write if the last writing is long ago."""
        self._done += n
        if self._path is not None and self._clock() - self._written >= INTERVAL:
            self.write()

    def write(self) -> None:
        """Write the file. A disk that takes it no longer does not end the work that it is about."""
        if self._path is None:
            return
        now = self._written = self._clock()
        n = self._done - self._first
        each = (now - self._started) / n if n else None
        progress = Progress(
            what=self._what,
            unit=self._unit,
            done=self._done,
            total=self._total,
            seconds_left=None if each is None else round(each * max(self._total - self._done, 0), 1),
            written_at=now,
            stale_after=max(STALE, 20 * (each or 0.0)),
        )
        try:
            write_json_atomic(self._path, asdict(progress))
        except OSError:
            pass


def heartbeat_path(environ: Mapping[str, str] | None = None) -> Path | None:
    """Return the file to write, or None: without $DIFFPROBE_HEARTBEAT, and on all processes but the main one."""
    known = os.environ if environ is None else environ
    named = known.get(VARIABLE)
    return Path(named) if named and is_main_process(known) else None


@contextmanager
def beating(n: int, *, what: str, unit: str, path: Path | None) -> Iterator[Heartbeat]:
    """Give the heartbeat of a block that does `n` units, and write it once more at the end."""
    beat = Heartbeat(path, what=what, unit=unit, total=n)
    try:
        yield beat
    finally:
        beat.write()


def read_progress(path: Path) -> Progress | None:
    """Return what a job has written last; None before that, and for a file that is not readable."""
    try:
        tree = read_json_object(path)
        numbers = {name: _number(tree.get(name), path) for name in ("done", "total", "written_at", "stale_after")}
        left = tree.get("seconds_left")
        return Progress(
            what=expect(tree.get("what"), str, where=f"'{path}', what"),
            unit=expect(tree.get("unit"), str, where=f"'{path}', unit"),
            done=int(numbers["done"]),
            total=int(numbers["total"]),
            seconds_left=None if left is None else _number(left, path),
            written_at=numbers["written_at"],
            stale_after=numbers["stale_after"],
        )
    except (OSError, DiffprobeError):
        return None


def _number(value: object, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SchemaError(f"'{path}': expected a number, found {value!r}.")
    return float(value)
