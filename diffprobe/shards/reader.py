"""Read the raw samples of one shard, and reject duplicate keys.

The tar is read to its end mark and its checksum, so that a damaged file is an error and not a shorter shard. Sizes are
checked in the headers, before memory is reserved. WebDataset splits the names of members; annotation.py and decode.py
interpret the samples.
"""

import gzip
import io
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Self

from diffprobe.config.schema import CapsConfig
from diffprobe.core.errors import DiffprobeError, DuplicateKey, SampleError, ShardError
from diffprobe.core.patience import NO_PATIENCE, Outage, Patience, WholeFile, cause, is_absence

_META = re.compile(r"__[^/]*__($|/)")
"""Names of members that WebDataset reserves."""
_MAX_NAME = 4096
"""Longest name of a member in characters; no file system has longer paths."""
_MAX_HEADER = 2**20
"""Largest extended header (long names, pax records) in bytes."""
_MAX_GLOBAL = 1000
"""Most global pax records of one tar; they stay in memory until its end."""
_MAX_PADDING = 64 * 2**20
"""Most zeros after the end mark, uncompressed; tar pads to 10 kB, some tools to 1 MB."""
_EXTENDED = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_PACKED = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4", b"PK": "zip"}
"""First bytes of a file -> the compression that is not read."""


@dataclass(frozen=True, kw_only=True)
class RawSample:
    """The files of one sample.

    Attributes:
        key: identity of the sample, unique in the shard set.
        shard: file name of the shard.
        position: index in the shard, faulty samples included.
        files: extension in lower case -> bytes.
    """

    key: str
    shard: str
    position: int
    files: dict[str, bytes]


def read_shard(
    path: Path,
    *,
    name: str | None = None,
    orphans: list[str] | None = None,
    caps: CapsConfig | None = None,
    n_bytes: int | None = None,
    patience: Patience = NO_PATIENCE,
) -> Iterator[RawSample]:
    """Yield the samples of a shard in order.

    Args:
        path: a tar, plain or packed with gzip.
        name: name of the shard in its set, for messages and `RawSample.shard`; the file name if None.
        orphans: filled with a line per skipped member that belongs to no sample (no extension, or a link).
        caps: largest sample that is read.
        n_bytes: size of the file by its index; a read that ends earlier counts as an absence of the storage.
        patience: how long the file is tried again while its storage is away; reading goes on at the same sample.

    Raises: ShardError for a missing, truncated or damaged file, one that is not a tar, one that is another after its
        storage was away, and for a sample that is larger than its cap; DuplicateKey for a key that occurs twice;
        SampleError for a name that is not UTF-8 text.
    """
    name = path.name if name is None else name
    outage = Outage(patience, f"shard {name}")
    lines: list[str] = [] if orphans is None else orphans
    n_lines, position, last = len(lines), 0, "(none)"
    while True:
        try:
            del lines[n_lines:]
            samples = _samples(path, name, lines, caps or CapsConfig(), n_bytes)
            if position:
                _require_same(name, path, next(islice(samples, position - 1, None), None), last)
            for sample in samples:
                outage.progress()
                position, last = sample.position + 1, sample.key
                yield sample
            outage.progress()
            return
        except DiffprobeError:
            raise
        except _UNREADABLE as error:
            if outage.wait(error):
                continue
            where = (f"samples read: {position}, the last one: '{last}'", f"file: {path}")
            if outage.tries and isinstance(error, OSError) and is_absence(error):
                raise storage_error(name, error, outage.described(), *where) from error
            raise ShardError(
                f"{name}: cannot read the shard to its end ({type(error).__name__}: {error}).",
                *where,
                fix="copy or download the shard again; it may be truncated or damaged",
            ) from error


def storage_error(name: str, error: OSError, tried: str, *details: str) -> ShardError:
    """Return the error for a shard whose storage did not come back.

    Args:
        tried: how long it was tried: "300 s (18 attempts)".
        details: further lines of the message.
    """
    return ShardError(
        f"{name}: the storage of the shard did not come back within {tried} ({cause(error)}).",
        *details,
        fix="make the folder readable again and give the same command: it continues; data.storage_patience=SECONDS "
        "waits longer",
    )


def _require_same(name: str, path: Path, sample: RawSample | None, last: str) -> None:
    """Check that a shard which was opened again has the sample at which its reading had stopped."""
    if sample is None or sample.key != last:
        found = "none" if sample is None else f"'{sample.key}'"
        raise ShardError(
            f"{name}: the shard is another one after its storage was away: sample {found} where '{last}' was.",
            f"file: {path}",
            fix="put the shard of the index back; diffprobe data verify FOLDER compares them",
        )


def _samples(path: Path, name: str, orphans: list[str], caps: CapsConfig, n_bytes: int | None) -> Iterator[RawSample]:
    keys: set[str] = set()
    files: dict[str, bytes] = {}
    current, position = None, 0
    for key, extension, data in _files(path, name, orphans, caps, n_bytes):
        if key != current:
            if current is not None:
                yield RawSample(key=current, shard=name, position=position, files=files)
                position += 1
            if key in keys:
                raise DuplicateKey(f"{name}: key '{key}' occurs again after other samples.", fix=_DUPLICATE_FIX)
            keys.add(key)
            current, files = key, {}
        if extension in files:
            raise DuplicateKey(f"{name}: sample '{key}' has two files '.{extension}'.", fix=_DUPLICATE_FIX)
        files[extension] = data
    if current is not None:
        yield RawSample(key=current, shard=name, position=position, files=files)


class _Header(tarfile.TarInfo):
    """A member's header. An invalid or missing one is an error; tarfile treats it as the end of the archive.

    Sparse members are refused: a header of some bytes makes tarfile reserve any amount of memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"expected a member or the end mark: {error}") from error
        if header.type in _EXTENDED and not 0 <= header.size <= _MAX_HEADER:
            raise tarfile.ReadError(f"an extended header of {header.size:,} bytes, more than {_MAX_HEADER:,}")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse member")
        return header

    def _refuse_sparse(self, *args: object) -> None:
        raise tarfile.ReadError("a sparse member")

    _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse_sparse


def _files(
    path: Path, name: str, orphans: list[str], caps: CapsConfig, size: int | None
) -> Iterator[tuple[str, str, bytes]]:
    """Yield key, extension in lower case and bytes of each file that belongs to a sample."""
    from webdataset.tariterators import base_plus_ext

    current, n_bytes = None, 0
    for member, content in _members(path, name, caps, size):
        key, extension = base_plus_ext(member.name)
        if content is None:
            orphans.append(f"member '{member.name}' belongs to no sample (link or device)")
        elif key is None:
            orphans.append(f"member '{member.name}' belongs to no sample (no extension)")
        elif extension.startswith("__"):
            orphans.append(f"member '{member.name}' belongs to no sample (reserved extension)")
        else:
            n_bytes = member.size + (n_bytes if key == current else 0)
            current = key
            _check_size(name, f"sample '{key}'", n_bytes, caps)
            yield key, extension.lower(), content.read()


def _members(
    path: Path, name: str, caps: CapsConfig, size: int | None
) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Yield each member of a tar, with its content if it is a plain file, then validate the end of the tar.

    The cap holds for members of no sample, too: to skip them, they have to be unpacked.
    """
    if path.exists() and not path.is_file():
        raise ShardError(f"{name}: the shard is not a regular file.", f"file: {path}", fix="replace it by a file")
    with open_shard(path) as plain:
        first = plain.peek(8)
        for mark, packed in _PACKED.items():
            if first.startswith(mark):
                raise ShardError(f"{name}: the shard is packed with {packed}.", _READ, fix=_repack(packed, path))
        whole: Any = WholeFile(plain, size)
        file: Any = gzip.GzipFile(fileobj=whole) if first.startswith(b"\x1f\x8b") else whole
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers
                _check_header(name, member, tar)
                _check_size(name, f"member '{member.name}'", member.size, caps)
                if member.isdir() or _META.match(member.name):
                    continue
                yield member, tar.extractfile(member) if member.isreg() else None
            _check_end(tar.fileobj)


def _check_header(name: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    if len(member.name) > _MAX_NAME or len(tar.pax_headers) > _MAX_GLOBAL:
        raise tarfile.ReadError(f"a name of {len(member.name):,} characters, {len(tar.pax_headers):,} global records")
    if not is_text(member.name):
        raise SampleError(
            f"{name}: the name of member {member.name!a} is not UTF-8 text.",
            fix="rename the member: keys must be UTF-8",
        )
    if member.size < 0:
        raise tarfile.ReadError(f"member '{member.name}' has a negative size")


def _check_size(name: str, what: str, n_bytes: int, caps: CapsConfig) -> None:
    if n_bytes > caps.sample_bytes:
        raise ShardError(
            f"{name}: {what} has {n_bytes:,} bytes, more than {caps.sample_bytes:,}, the cap data.caps.sample_bytes.",
            fix=f"data.caps.sample_bytes={n_bytes} (in data commands: --cap sample_bytes={n_bytes})",
        )


def is_text(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; invalid bytes and escapes are lone surrogates in Python.

    >>> is_text("caf\\u00e9"), is_text("caf\\udce9")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_end(stream: Any) -> None:
    """Read past the first block of zeros: one more must follow, and nothing else. gzip verifies its checksum.

    Source: POSIX.1-2017, pax, "ustar Interchange Format".
    """
    n_zeros = 0
    while block := stream.read(1 << 16):
        if block.strip(b"\0"):
            raise tarfile.ReadError("data after the end mark")
        n_zeros += len(block)
        if n_zeros > _MAX_PADDING:
            raise tarfile.ReadError(f"more than {_MAX_PADDING:,} zeros after the end mark")
    if n_zeros < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the end mark is truncated")


def _repack(packed: str, path: Path) -> str:
    tools = {"bzip2": "bunzip2", "xz": "unxz", "zstd": "zstd -d --rm", "lz4": "lz4 -d --rm"}
    return f"{tools[packed]} '{path}'" if packed in tools else "write its files into a tar"


def open_shard(path: Path) -> io.BufferedReader:
    """Open the file of a shard."""
    return open(path, "rb")


_UNREADABLE = (
    tarfile.TarError,
    OSError,
    EOFError,
    zlib.error,
    struct.error,
    ValueError,
    ArithmeticError,
    RecursionError,
)
"""What reading a truncated or damaged tar raises."""
_READ = "read are plain tar files and those packed with gzip"
_DUPLICATE_FIX = "give every sample its own key and write all files of a sample one after the other"
