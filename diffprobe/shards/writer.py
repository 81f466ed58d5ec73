"""Writes shards. Owns the bytes: the same samples give the same file, on any day and by any user.

The format is in PROTOCOL.md; what is written here is indexed by index.py and read by read.py.
"""

import gzip
import io
import os
import re
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from diffprobe.core.errors import DuplicateKey, SampleError, ShardError
from diffprobe.shards.reader import is_text

Members = Iterable[tuple[str, dict[str, bytes]]]
"""Samples to write: the key, and the bytes of each field by file extension without its dot."""

SUFFIXES = (".tar", ".tar.gz")
_EXTENSION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def write_shard(path: Path, members: Members) -> int:
    """Write one shard and return its number of samples.

    Samples keep their order, the fields of a sample are sorted by name. Time, owner and mode are fixed, and so is the
    gzip header, so equal samples give equal bytes (compressed ones for one version of zlib). The file appears under
    its name only when complete; a failure leaves an older file as it was.

    Args:
        path: where to write; `.tar` or `.tar.gz` says whether it is compressed.
        members: (key, {extension: bytes}) of each sample, for example ("cup/1", {"jpg": ..., "json": ...}).

    Raises: ShardError for another suffix, SampleError for a key or extension that WebDataset would read differently,
        DuplicateKey for a key that comes twice.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ShardError(f"a shard can't be written as '{path.name}'.", f"allowed suffixes: {', '.join(SUFFIXES)}")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        count = _write(temporary, members, shard=path.name)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def write_shards(
    samples: Members, out_dir: Path, split: str, *, samples_per_shard: int = 1000, compress: bool = False
) -> list[Path]:
    """Write one split as `<split>-0000.tar`, `<split>-0001.tar`, ... and return the paths in order.

    Raises: ShardError if `out_dir` holds shards of this split already (left-over shards would join the new ones), or
        if there is no sample, and what `write_shard` raises.
    """
    if samples_per_shard < 1:
        raise ShardError(f"samples_per_shard={samples_per_shard} must be at least 1.")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    old = sorted(file.name for file in out_dir.glob(f"{split}-*.tar*"))
    if old:
        raise ShardError(
            f"'{out_dir}' holds shards of split '{split}' already.", f"found: {', '.join(old)}", fix="remove them first"
        )
    paths: list[Path] = []
    keys: set[str] = set()
    rest = iter(samples)
    while chunk := list(islice(rest, samples_per_shard)):
        path = out_dir / f"{split}-{len(paths):04d}{SUFFIXES[compress]}"
        again = [key for key, _ in chunk if key in keys]
        if again:
            raise DuplicateKey(f"{path.name}: key '{again[0]}' was written to an earlier shard already.")
        write_shard(path, chunk)
        keys.update(key for key, _ in chunk)
        paths.append(path)
    if not paths:
        raise ShardError(f"there is no sample to write for split '{split}'.")
    return paths


def _write(temporary: Path, members: Members, shard: str) -> int:
    keys: set[str] = set()
    with ExitStack() as stack:
        file: object = stack.enter_context(open(temporary, "wb"))
        if shard.endswith(".gz"):  # without a file name and a time in the header, which would change the bytes
            file = stack.enter_context(
                gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0)  # type: ignore[call-overload]
            )
        tar = stack.enter_context(tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT))  # type: ignore[call-overload]
        for key, fields in members:
            _check(shard, key, fields)
            if key in keys:
                raise DuplicateKey(f"{shard}: key '{key}' comes twice.", fix="give every sample its own key")
            keys.add(key)
            for extension in sorted(fields):
                tar.addfile(_header(f"{key}.{extension}", len(fields[extension])), io.BytesIO(fields[extension]))
    return len(keys)


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime, header.mode = size, 0, 0o644
    header.uid = header.gid = 0
    header.uname = header.gname = ""
    return header


def _check(shard: str, key: str, fields: dict[str, bytes]) -> None:
    """Refuse what readers would skip or split at another place (WebDataset: the first dot after the last slash)."""
    base = key.rsplit("/", 1)[-1]
    if not base or "." in base or key.startswith(("/", "__")) or "\0" in key or not is_text(key):
        raise SampleError(
            f"{shard}: {key!r} can't be a key.",
            "allowed: UTF-8 text without a dot after the last slash, no slash at either end, no '__' at the beginning",
        )
    if not fields:
        raise SampleError(f"{shard}: sample '{key}' has no field.")
    bad = [extension for extension in fields if not _EXTENSION.fullmatch(extension)]
    if bad:
        raise SampleError(
            f"{shard}: sample '{key}' has the extension '{bad[0]}'.",
            "allowed: lower-case letters, digits, '_', inner dots",
        )
