"""Read the raw samples of one shard, and reject duplicate keys.

The tar is read to its end mark and its checksum, so that a damaged file is an error and not a shorter shard. WebDataset
groups the members into samples; annotation.py and decode.py interpret them.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from diffprobe.core.errors import DuplicateKey, SampleError, ShardError

_META = re.compile(r"__[^/]*__($|/)")
"""Names of members that WebDataset reserves."""


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


def read_shard(path: Path, *, orphans: list[str] | None = None) -> Iterator[RawSample]:
    """Yield the samples of a shard in order.

    Args:
        path: a `.tar` or `.tar.gz` file.
        orphans: filled with a line per skipped member that belongs to no sample (no extension, or a link).

    Raises: ShardError for a missing, truncated or damaged file, or one that is not a tar; DuplicateKey for a key that
        occurs twice; SampleError for a name that is not UTF-8 text.
    """
    from webdataset.tariterators import base_plus_ext, group_by_keys

    members: set[str] = set()
    passed_over: list[str] = [] if orphans is None else orphans

    def split_name(name: str) -> tuple[str | None, str | None]:
        key, extension = base_plus_ext(name)
        if key is None:
            passed_over.append(f"member '{name}' belongs to no sample (no extension)")
        elif f"{key}.{extension.lower()}" in members:
            raise DuplicateKey(f"{path.name}: sample '{key}' has two files '.{extension.lower()}'.", fix=_DUPLICATE_FIX)
        else:
            members.add(f"{key}.{extension.lower()}")
        return key, extension

    last, position, keys = "(none)", 0, set()
    try:
        for group in group_by_keys(_members(path, passed_over), keys=split_name):
            key = group["__key__"]
            if key in keys:
                raise DuplicateKey(f"{path.name}: key '{key}' occurs again after other samples.", fix=_DUPLICATE_FIX)
            keys.add(key)
            files = {name: data for name, data in group.items() if not name.startswith("__")}
            yield RawSample(key=key, shard=path.name, position=position, files=files)
            last, position = key, position + 1
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ShardError(
            f"{path.name}: cannot read the shard to its end ({type(error).__name__}: {error}).",
            f"samples read: {position}, the last one: '{last}'",
            f"file: {path}",
            fix="copy or download the shard again; it may be truncated or damaged",
        ) from error


class _Header(tarfile.TarInfo):
    """A member's header. An invalid or missing one is an error; tarfile treats it as the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # a block of zeros: the end mark
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"expected a member or the end mark: {error}") from error


def _members(path: Path, orphans: list[str]) -> Iterator[dict[str, Any]]:
    """Yield name and bytes of each file in a tar in WebDataset's format, then validate the end of the tar."""
    with open(path, "rb") as plain:
        packed = plain.peek(2)[:2] == b"\x1f\x8b"
        file: Any = gzip.GzipFile(fileobj=plain) if packed else plain
        with tarfile.open(fileobj=file, mode="r|", tarinfo=_Header) as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all headers
                if member.isdir() or _META.match(member.name):
                    continue
                if not is_text(member.name):
                    raise SampleError(
                        f"{path.name}: the name of member {member.name!a} is not UTF-8 text.",
                        fix="rename the member: keys must be UTF-8",
                    )
                content = tar.extractfile(member) if member.isreg() else None
                if content is None:
                    orphans.append(f"member '{member.name}' belongs to no sample (link or device)")
                else:
                    yield {"fname": member.name, "data": content.read(), "__url__": path.name}
            _check_end(tar.fileobj)


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
    if n_zeros < tarfile.BLOCKSIZE:
        raise tarfile.ReadError("the end mark is truncated")


_DUPLICATE_FIX = "give every sample its own key and write all files of a sample one after the other"
