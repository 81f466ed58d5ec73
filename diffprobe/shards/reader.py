"""Read the raw samples of one shard, and reject duplicate keys.

The tar is read to its end mark and its checksum, so that a damaged file is an error and not a shorter shard. Sizes are
checked in the headers, before memory is reserved. WebDataset splits the names of members; annotation.py and decode.py
interpret the samples.
"""

import gzip
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

from diffprobe.config.schema import CapsConfig
from diffprobe.core.errors import DiffprobeError, DuplicateKey, SampleError, ShardError

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
    path: Path, *, name: str | None = None, orphans: list[str] | None = None, caps: CapsConfig | None = None
) -> Iterator[RawSample]:
    """Yield the samples of a shard in order.

    Args:
        path: a tar, plain or packed with gzip.
        name: name of the shard in its set, for messages and `RawSample.shard`; the file name if None.
        orphans: filled with a line per skipped member that belongs to no sample (no extension, or a link).
        caps: largest sample that is read.

    Raises: ShardError for a missing, truncated or damaged file, one that is not a tar, and for a sample that is larger
        than its cap; DuplicateKey for a key that occurs twice; SampleError for a name that is not UTF-8 text.
    """
    name = path.name if name is None else name
    keys: set[str] = set()
    files: dict[str, bytes] = {}
    last, current, position = "(none)", None, 0
    try:
        for key, extension, data in _files(path, name, [] if orphans is None else orphans, caps or CapsConfig()):
            if key != current:
                if current is not None:
                    yield RawSample(key=current, shard=name, position=position, files=files)
                    last, position = current, position + 1
                if key in keys:
                    raise DuplicateKey(f"{name}: key '{key}' occurs again after other samples.", fix=_DUPLICATE_FIX)
                keys.add(key)
                current, files = key, {}
            if extension in files:
                raise DuplicateKey(f"{name}: sample '{key}' has two files '.{extension}'.", fix=_DUPLICATE_FIX)
            files[extension] = data
        if current is not None:
            yield RawSample(key=current, shard=name, position=position, files=files)
    except DiffprobeError:
        raise
    except (
        tarfile.TarError,
        OSError,
        EOFError,
        zlib.error,
        struct.error,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise ShardError(
            f"{name}: cannot read the shard to its end ({type(error).__name__}: {error}).",
            f"samples read: {position}, the last one: '{last}'",
            f"file: {path}",
            fix="copy or download the shard again; it may be truncated or damaged",
        ) from error


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


def _files(path: Path, name: str, orphans: list[str], caps: CapsConfig) -> Iterator[tuple[str, str, bytes]]:
    """Yield key, extension in lower case and bytes of each file that belongs to a sample."""
    from webdataset.tariterators import base_plus_ext

    current, n_bytes = None, 0
    for member, content in _members(path, name, caps):
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


def _members(path: Path, name: str, caps: CapsConfig) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """Yield each member of a tar, with its content if it is a plain file, then validate the end of the tar.

    The cap holds for members of no sample, too: to skip them, they have to be unpacked.
    """
    if path.exists() and not path.is_file():
        raise ShardError(f"{name}: the shard is not a regular file.", f"file: {path}", fix="replace it by a file")
    with open(path, "rb") as plain:
        first = plain.peek(8)
        for mark, packed in _PACKED.items():
            if first.startswith(mark):
                raise ShardError(f"{name}: the shard is packed with {packed}.", _READ, fix=_repack(packed, path))
        file: Any = gzip.GzipFile(fileobj=plain) if first.startswith(b"\x1f\x8b") else plain
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


_READ = "read are plain tar files and those packed with gzip"
_DUPLICATE_FIX = "give every sample its own key and write all files of a sample one after the other"
