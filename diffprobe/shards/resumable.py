"""Write the shards of a set from image files: in parallel, and so that an interrupted build continues.

`.build.jsonl` beside the shards lists what each finished one was made from. A build with other settings or files is
refused with what differs, so that a set never mixes two sources.
"""

import fcntl
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from diffprobe.core.atomic_file import atomic_file, remove_unfinished
from diffprobe.core.digest import digest_json
from diffprobe.core.errors import DiffprobeError, RunFailed, SampleError, ShardError
from diffprobe.core.json_file import parse_json
from diffprobe.core.progress import Announce, MakeBar
from diffprobe.shards.annotation import Caps, Fields
from diffprobe.shards.reader import RawSample
from diffprobe.shards.shard_names import more_lines
from diffprobe.shards.source_archive import FilePart
from diffprobe.shards.writer import write_shard

LEFT_OUT = "left_out.txt"
"""File beside the shards that lists what `--on-error skip` left out."""
JOURNAL = ".build.jsonl"
"""File beside the shards: the settings of the build, then one line per finished shard."""
_SHOWN = 10
_FIX = "use an empty --out, or remove that folder to build everything anew"


@dataclass(frozen=True, kw_only=True, slots=True)
class FurtherFile:
    """A file of a sample beside its image and annotation: its extension, its bytes, and what changes them."""

    field: str
    part: FilePart
    change: Callable[[bytes], bytes] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSample:
    """One sample to write: its key, its image file, and its annotation as JSON text.

    Attributes:
        key: identity of the sample.
        path: the file with the image.
        name: what messages call the image; it stays equal where the source folder is moved.
        field: extension of the image in the sample: jpg, png or webp.
        record: the annotation; "" for none.
        offset, n_bytes: the part of the file that is the image; the whole file by default.
        change: makes the image from these bytes; None copies them. A function of a module, which processes can import.
        further: files beside the image.
    """

    key: str
    path: Path
    name: str
    field: str
    record: str
    offset: int = 0
    n_bytes: int | None = None
    change: Callable[[bytes], bytes] | None = None
    further: tuple[FurtherFile, ...] = ()

    def part(self) -> FilePart:
        """Return the bytes of the source that the image is made from."""
        return FilePart(path=self.path, offset=self.offset, n_bytes=self.n_bytes)


@dataclass(frozen=True, kw_only=True)
class _Written:
    """A finished shard: what it was made from, and its size in bytes (None if no sample was left)."""

    shard: str
    sources: dict[str, list[int | str]]
    left_out: dict[str, str]
    n_bytes: int | None


class _Faulty(Exception):
    """Ends the writing of a shard that is not kept."""


def write_planned(
    out: Path,
    plan: Mapping[str, Sequence[PlannedSample]],
    *,
    settings: Mapping[str, object],
    on_error: str = "raise",
    jobs: int = 1,
    make_bar: MakeBar | None = None,
    announce: Announce | None = None,
) -> dict[str, str]:
    """Write shards; those that an earlier call has finished from the same files are kept.

    Every image is decoded to its end, and its bytes are copied.

    Args:
        out: folder of the shards; made if missing. One process at a time builds in it.
        plan: file name of each shard -> its samples in order.
        settings: what the plan was made from, to name what differs.
        on_error: "raise" reads all images, writes the shards without a fault and lists the faults of the others;
            "skip" leaves faulty images out.
        jobs: processes.
        make_bar: opens a bar over the images of the shards that are not finished.
        announce: receives a line on the shards that are.

    Returns: name of each image that was left out -> the reason.
    Raises: ShardError for faulty images, for a folder with shards of another source, with what differs, and for a
        folder in which another process builds; RunFailed if a process was killed.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open_journal(out) as journal:
        remove_unfinished(out)
        done = _finished(out, journal, plan, settings)
        if not journal.tell():
            append_line(journal, {"settings": dict(settings)})
        faults: dict[str, str] = {}
        left = []
        for shard in plan:
            if shard not in done:
                left.append(shard)
            elif done[shard].left_out and on_error == "raise":
                faults.update(done[shard].left_out)
        total, n_left = sum(map(len, plan.values())), sum(len(plan[shard]) for shard in left)
        if announce and len(left) < len(plan):
            announce(f"{len(plan) - len(left)} of {len(plan)} shards are finished already and kept")
        with make_bar(n_left) if make_bar and left else nullcontext() as bar:
            for result in _results([(out, shard, plan[shard], on_error) for shard in left], jobs):
                if result.left_out and on_error == "raise":
                    faults.update(result.left_out)
                else:
                    done[result.shard] = result
                    append_line(journal, asdict(result))
                if bar is not None:
                    bar.update(len(plan[result.shard]))
        if faults:
            lines = [faults[name] for name in sorted(faults)]
            raise ShardError(
                f"{len(lines)} of {total:,} images cannot be read; shards without them are finished and kept.",
                *lines[:_SHOWN], *more_lines(lines, _SHOWN),
                fix="repair or remove them and run the command again, or leave them out: --on-error skip",
            )  # fmt: skip
        _rewrite(out, settings, [done[shard] for shard in plan])
    return {name: reason for shard in plan for name, reason in done[shard].left_out.items()}


def _results(tasks: Sequence[tuple[Path, str, Sequence[PlannedSample], str]], jobs: int) -> Iterator[_Written]:
    """Write shards and yield each as it is finished."""
    if min(jobs, len(tasks)) < 2:
        yield from (_write(*task) for task in tasks)
        return
    context = multiprocessing.get_context("spawn")  # the parent may have threads, of progress bars
    pool = ProcessPoolExecutor(min(jobs, len(tasks)), mp_context=context, initializer=_ignore_interrupts)
    try:
        for future in as_completed([pool.submit(_write, *task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise RunFailed(
            "a process that writes shards was killed, perhaps for lack of memory.",
            fix="run the command again, with fewer --jobs; finished shards are kept",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its workers


def _write(out: Path, shard: str, samples: Sequence[PlannedSample], on_error: str) -> _Written:
    """Write one shard, unless it has faults and `on_error` is "raise", or no sample is left."""
    sources: dict[str, list[int | str]] = {}
    left_out: dict[str, str] = {}

    def members() -> Iterator[tuple[str, dict[str, bytes]]]:
        n_good = 0
        for sample in samples:
            try:
                sources[sample.name] = _source(sample)
                files = _read(sample)
            except (SampleError, OSError) as error:
                sources.setdefault(sample.name, [0, 0, ""])
                left_out[sample.name] = _reason(sample, error)
                continue
            n_good += 1
            if on_error == "skip" or not left_out:
                yield sample.key, files
        if not n_good or (left_out and on_error == "raise"):
            raise _Faulty

    path = out / shard
    try:
        write_shard(path, members())
    except _Faulty:
        if on_error == "skip":  # otherwise a shard of an earlier `skip` stays, which the index may list
            path.unlink(missing_ok=True)
        return _Written(shard=shard, sources=sources, left_out=left_out, n_bytes=None)
    return _Written(shard=shard, sources=sources, left_out=left_out, n_bytes=path.stat().st_size)


def _reason(sample: PlannedSample, error: SampleError | OSError) -> str:
    if isinstance(error, SampleError):
        return error.what
    return f"{sample.name}: cannot be opened ({error.strerror or type(error).__name__})."


def _source(sample: PlannedSample) -> list[int | str]:
    """Return size, time of the last change, and digest of the annotation and field of a source."""
    facts: list[object] = [sample.key, sample.field, sample.record]
    if sample.change is not None:
        facts.append(sample.change.__qualname__)
    facts += [[one.field, one.part.size(), one.change.__qualname__ if one.change else ""] for one in sample.further]
    return [sample.part().size(), sample.path.stat().st_mtime_ns, digest_json(facts)[:16]]


def _read(sample: PlannedSample) -> dict[str, bytes]:
    """Return the files of a sample. Raises: SampleError for an image that cannot be decoded; OSError."""
    from diffprobe.shards.decode import decode_image  # Pillow, which `data --help` does not need

    files: dict[str, bytes] = {}
    parts = {sample.field: (sample.part(), sample.change)}
    parts |= {one.field: (one.part, one.change) for one in sample.further}
    for field, (part, change) in parts.items():
        files[field] = _bytes_of(part, change, sample)
    raw = RawSample(key=sample.key, shard=sample.name, position=0, files={sample.field: files[sample.field]})
    decode_image(raw, Fields())
    return {**files, **({"json": sample.record.encode()} if sample.record else {})}


def _bytes_of(part: FilePart, change: Callable[[bytes], bytes] | None, sample: PlannedSample) -> bytes:
    cap = Caps().sample_bytes
    if not part.path.is_file() or (size := part.size()) > cap:
        what = f"{size:,} bytes, more than {cap:,}" if part.path.is_file() else "not a regular file"
        raise SampleError(f"{sample.name}, sample '{sample.key}': {what}.")
    data = part.read()
    if change is None:
        return data
    try:
        return change(data)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error and others
        raise SampleError(
            f"{sample.name}, sample '{sample.key}': cannot decode image ({type(error).__name__}: {error})."
        ) from error


@contextmanager
def open_journal(out: Path) -> Iterator[IO[bytes]]:
    """Open the journal, locked against other builds. Raises: ShardError if one is running."""
    with open(out / JOURNAL, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ShardError(f"another process builds shards in '{out}'.", fix="wait for it, or end it") from error
        except OSError:  # a file system without locks
            pass
        yield file


def append_line(journal: IO[bytes], line: Mapping[str, object]) -> None:
    """Append a line to a journal, on the disk before it returns."""
    journal.write(json.dumps(line, sort_keys=True).encode() + b"\n")
    journal.flush()
    os.fsync(journal.fileno())


def list_left_out(out: Path, lines: Sequence[str], say: Announce) -> None:
    """Write `left_out.txt` and say how many lines it has and the first ones; remove it if there are none."""
    path = out / LEFT_OUT
    if not lines:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    say(f"left out: {len(lines)} (all of them in {path})")
    for line in [*lines[:_SHOWN], *more_lines(list(lines), _SHOWN)]:
        say(f"  {line}")


def _rewrite(out: Path, settings: Mapping[str, object], written: Sequence[_Written]) -> None:
    """Sort the journal of a finished build, so that its bytes do not depend on the order of processes."""
    lines = [{"settings": dict(settings)}, *map(asdict, written)]
    with atomic_file(out / JOURNAL) as temporary:
        temporary.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines), "utf-8")


def _finished(
    out: Path, journal: IO[bytes], plan: Mapping[str, Sequence[PlannedSample]], settings: Mapping[str, object]
) -> dict[str, _Written]:
    """Return the finished shards of an earlier call. Raises: ShardError if they are not part of the plan."""
    before, done = _parse(out, journal)
    there = sorted(path.name for path in out.glob("*.tar*"))
    foreign = [name for name in there if name not in done and (before is None or name not in plan)]
    if foreign:
        raise ShardError(
            f"'{out}' has shards that this build did not write.",
            *foreign[:_SHOWN], *more_lines(foreign, _SHOWN), fix=_FIX,
        )  # fmt: skip
    if before is not None and before != dict(settings):
        lines = [f"{key}: {before.get(key)} there, {settings.get(key)} here" for key in sorted({*before, *settings})
                 if before.get(key) != settings.get(key)]  # fmt: skip
        raise ShardError(f"'{out}' has shards that were built with other settings.", *lines, fix=_FIX)
    kept: dict[str, _Written] = {}
    differing: list[str] = []
    for shard, written in done.items():
        path = out / shard
        size = path.stat().st_size if path.is_file() else None
        if size != written.n_bytes:  # removed or replaced: it is written again
            continue
        changes = _changes(written, plan.get(shard, ()))
        if not changes:
            kept[shard] = written
        elif set(changes) - set(written.left_out):  # an image that was left out may be repaired or removed
            differing += [f"{name}: {what}" for name, what in changes.items()]
    if differing:
        raise ShardError(
            f"'{out}' has shards that were built from other files: {len(differing)} differ.",
            *differing[:_SHOWN], *more_lines(differing, _SHOWN), fix=_FIX,
        )  # fmt: skip
    return kept


def _changes(written: _Written, samples: Sequence[PlannedSample]) -> dict[str, str]:
    """Return name -> what differs between the sources of a finished shard and those that are there now."""
    now = {sample.name: sample for sample in samples}
    changes = {name: "no longer there" for name in written.sources if name not in now}
    for name, sample in now.items():
        if name not in written.sources:
            changes[name] = "new"
            continue
        try:
            found = _source(sample)
        except OSError:
            found = [0, 0, ""]
        was = written.sources[name]
        if found != was:
            changes[name] = "its annotation differs" if found[:2] == was[:2] else "changed"
    return changes


def _parse(out: Path, journal: IO[bytes]) -> tuple[dict[str, object] | None, dict[str, _Written]]:
    """Read the settings and finished shards; a last line that a kill cut short is removed."""
    journal.seek(0)
    text = journal.read()
    whole = text.rfind(b"\n") + 1
    if whole < len(text):
        journal.truncate(whole)
        journal.seek(0, os.SEEK_END)
    settings: dict[str, object] | None = None
    done: dict[str, _Written] = {}
    for number, line in enumerate(text[:whole].splitlines(), 1):
        where = f"'{out / JOURNAL}', line {number}"
        try:
            record = parse_json(line, where=where, error=ShardError, fix=_FIX)
            if number == 1:
                settings = dict(record["settings"])
            else:
                done[record["shard"]] = _Written(**record)
        except (DiffprobeError, KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{where} is not a line of a build.", fix=_FIX) from error
    return settings, done
