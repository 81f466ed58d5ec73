"""Read the archives of published data sets in place: tars, plain or packed with gzip, or the folder they unpack to.

Nothing of an archive is written under a name that it chooses: a packed tar is unpacked to one plain tar, and its files
are read by their position in it.
"""

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import ShardError
from diffprobe.shards.shard_names import files_below, more_lines

UNPACKED = ".unpacked"
"""Folder below that of the shards which holds the plain tars of packed ones until the build has finished."""
_MOST_UNPACKED = 64 * 2**30
"""Largest plain tar that a packed one may become, in bytes; the largest of the published sets has 3 GB."""
_MOST_TEXT = 64 * 2**20
"""Largest list or table in an archive, in bytes."""
_CHUNK = 2**20
_SHOWN = 10
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK": "zip", b"Rar!": "rar", b"7z\xbc\xaf": "7-zip"}
"""First bytes of a file -> the kind of archive that is not read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilePart:
    """Consecutive bytes of a file.

    Attributes:
        path: the file.
        offset: position of the first byte.
        n_bytes: their number; None for all bytes to the end of the file.
    """

    path: Path
    offset: int = 0
    n_bytes: int | None = None

    def size(self) -> int:
        """Return the number of bytes. Raises: OSError."""
        return self.path.stat().st_size - self.offset if self.n_bytes is None else self.n_bytes

    def read(self) -> bytes:
        """Return the bytes. Raises: OSError, also for a file that has become shorter."""
        with open(self.path, "rb") as file:
            file.seek(self.offset)
            data = file.read() if self.n_bytes is None else file.read(self.n_bytes)
        if self.n_bytes is not None and len(data) != self.n_bytes:
            raise OSError(f"{self.path.name} ends within the file at byte {self.offset}")
        return data

    def part(self, offset: int, n_bytes: int) -> "FilePart":
        """Return bytes of this part; `offset` counts from its first one."""
        return FilePart(path=self.path, offset=self.offset + offset, n_bytes=n_bytes)


def open_source(source: Path, *, out: Path, expected: str) -> dict[str, FilePart]:
    """List the files of an archive, or of the folder that it unpacks to. Hidden files are left out.

    Args:
        source: a tar, plain or packed with gzip, or a folder.
        out: folder of the shards; a packed tar is unpacked to `out/.unpacked`, with the time of the archive, and an
            unpacked one of that time is used again.
        expected: what the source should be, for messages.

    Returns: name in the archive, or below the folder -> its bytes.
    Raises: ShardError for a missing, truncated or damaged file, another kind of archive, links and devices in it,
        names that lead out of it, a name that occurs twice, and an archive without a file.
    """
    if source.is_dir():
        found = {path.relative_to(source).as_posix(): FilePart(path=path) for path in files_below(source)}
        if not found:
            raise ShardError(f"folder '{source}' has no file.", f"expected: {expected}")
        return found
    if not source.is_file():
        raise ShardError(f"'{source}' does not exist.", f"expected: {expected}", fix="download it, and give its path")
    try:
        plain = _plain(source, out, expected)
        with open(plain, "rb") as file:
            found = _members(file, FilePart(path=plain), source.name, expected)
    except (OSError, EOFError, zlib.error, tarfile.TarError, UnicodeError) as error:
        raise _unreadable(source.name, error, expected) from error
    if not found:
        raise ShardError(f"'{source}' has no file.", f"expected: {expected}")
    return found


def open_inner(tar: FilePart, *, name: str, expected: str) -> dict[str, FilePart]:
    """List the files of a plain tar that is itself a file of an archive. Raises: ShardError, see `open_source`."""
    try:
        with open(tar.path, "rb") as file:
            return _members(file, tar, name, expected)
    except (OSError, EOFError, tarfile.TarError, UnicodeError) as error:
        raise _unreadable(name, error, expected) from error


def read_text(part: FilePart, name: str) -> str:
    """Return a list or table of an archive as text. Raises: ShardError if it is too large or not UTF-8."""
    try:
        return read_small(part, name).decode()
    except UnicodeDecodeError as error:
        raise ShardError(f"{name} is not UTF-8 text (byte {error.start}).") from error


def read_small(part: FilePart, name: str) -> bytes:
    """Return a small file of an archive. Raises: ShardError if it has more than 64 MiB or cannot be read."""
    try:
        if (size := part.size()) > _MOST_TEXT:
            raise ShardError(f"{name}: {size:,} bytes, more than {_MOST_TEXT:,}.")
        return part.read()
    except OSError as error:
        raise ShardError(f"{name}: cannot be read ({error}).") from error


def by_tail(files: Mapping[str, FilePart], depth: int, endings: Iterable[str] = ()) -> dict[str, FilePart]:
    """Return the files by the last parts of their names, wherever in the archive they are.

    Args:
        files: name -> bytes, from `open_source`.
        depth: number of parts that are kept; files with fewer parts are left out.
        endings: extensions in lower case without the dot; all if empty.

    Raises: ShardError for two files with the same last parts.

    >>> list(by_tail({"set/images/cat/1.jpg": FilePart(path=Path("x"))}, 2))
    ['cat/1.jpg']
    """
    wanted = set(endings)
    found: dict[str, FilePart] = {}
    for name, part in files.items():
        parts = PurePosixPath(name).parts
        if len(parts) < depth or (wanted and PurePosixPath(name).suffix[1:].lower() not in wanted):
            continue
        tail = "/".join(parts[-depth:])
        if tail in found:
            raise ShardError(f"two files are called '{tail}'; the second is '{name}'.", fix="give the archive itself")
        found[tail] = part
    return found


def require(files: Mapping[str, FilePart], names: Iterable[str], *, source: Path, expected: str) -> None:
    """Raise ShardError, with the names, if files are missing."""
    missing = sorted(set(names) - set(files))
    if missing:
        raise ShardError(
            f"'{source}' lacks {len(missing)} files that it should have.", *missing[:_SHOWN],
            *more_lines(missing, _SHOWN), f"expected: {expected}",
            fix="download the archive again; it may be truncated, or another one",
        )  # fmt: skip


def _plain(source: Path, out: Path, expected: str) -> Path:
    """Return the plain tar of an archive: itself, or what it is unpacked to."""
    with open(source, "rb") as file:
        head = file.read(6)
    for start, kind in _OTHERS.items():
        if head.startswith(start):
            raise ShardError(
                f"'{source}' is packed with {kind}, which is not read.", f"expected: {expected}",
                fix="unpack it, and give the folder or the tar that is in it",
            )  # fmt: skip
    if not head.startswith(b"\x1f\x8b"):
        return source
    before = source.stat()
    path = out / UNPACKED / f"{source.name}.plain"
    if path.is_file() and path.stat().st_mtime_ns == before.st_mtime_ns:
        return path
    with atomic_file(path) as temporary, gzip.open(source, "rb") as packed, open(temporary, "wb") as file:
        n_bytes = 0
        while chunk := packed.read(_CHUNK):
            n_bytes += len(chunk)
            if n_bytes > _MOST_UNPACKED:
                raise ShardError(f"'{source}' unpacks to more than {_MOST_UNPACKED:,} bytes.", f"expected: {expected}")
            file.write(chunk)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    return path


def _members(file: IO[bytes], whole: FilePart, name: str, expected: str) -> dict[str, FilePart]:
    """List the regular files of a plain tar that begins at `whole.offset`."""
    end = whole.offset + whole.size()
    file.seek(whole.offset)
    found: dict[str, FilePart] = {}
    with tarfile.TarFile(fileobj=file, mode="r") as tar:
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # it would keep every header in memory
            path = PurePosixPath(member.name)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise ShardError(
                    f"{name}: '{member.name}' is a link, a device or a sparse file; only plain files are read.",
                    f"expected: {expected}",
                )
            if path.is_absolute() or ".." in path.parts or "\0" in member.name or "\\" in member.name:
                raise ShardError(f"{name}: '{member.name}' leads out of the archive.", f"expected: {expected}")
            if member.offset_data + member.size > end:
                raise EOFError(f"it ends within '{member.name}'")
            if path.name.startswith("."):  # of desktop systems
                continue
            if path.as_posix() in found:
                raise ShardError(f"{name}: '{member.name}' occurs twice.", f"expected: {expected}")
            found[path.as_posix()] = FilePart(path=whole.path, offset=member.offset_data, n_bytes=member.size)
        if tar.offset < end:  # tarfile ends at a damaged header as at the end mark
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise EOFError(f"no header of a file at byte {tar.offset:,}")
    return found


def _unreadable(name: str, error: Exception, expected: str) -> ShardError:
    return ShardError(
        f"'{name}' cannot be read to its end ({type(error).__name__}: {error}).", f"expected: {expected}",
        fix="download it again; it may be truncated, or no archive",
    )  # fmt: skip
