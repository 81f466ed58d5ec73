"""Write shards; equal samples give equal bytes, independent of time and user.

The format is in PROTOCOL.md. `write_shards` writes a whole split; `build_index` (index.py) then indexes the folder.
"""

import gzip
import io
import re
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import DuplicateKey, SampleError, ShardError
from diffprobe.shards.reader import is_text

Members = Iterable[tuple[str, dict[str, bytes]]]
"""Samples to write: the key, and the bytes by file extension (without the dot)."""

SUFFIXES = (".tar", ".tar.gz")
_EXTENSION = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


def write_shard(path: Path, members: Members) -> int:
    """Write one shard and return its number of samples.

    Samples keep their order; the fields of a sample are sorted by name. Time, owner, mode and gzip header are fixed, so
    equal samples give equal bytes (compressed files: for one version of zlib). The file is renamed to its final name
    when complete; an error leaves an older file unchanged.

    Args:
        path: the file; `.tar.gz` is compressed, `.tar` is not.
        members: (key, {extension: bytes}) of each sample, for example ("cup/1", {"jpg": ..., "json": ...}).

    Raises: ShardError for another suffix, SampleError for a key or extension that WebDataset would read differently,
        DuplicateKey for a key that occurs twice.
    """
    path = Path(path)
    if not path.name.endswith(SUFFIXES):
        raise ShardError(f"'{path.name}' is not a shard name.", f"allowed suffixes: {', '.join(SUFFIXES)}")
    with atomic_file(path) as temporary:
        return _write(temporary, members, shard=path.name)


def write_shards(
    samples: Members, out_dir: Path, split: str, *, samples_per_shard: int = 1000, compress: bool = False
) -> list[Path]:
    """Write one split as `<split>-0000.tar`, `<split>-0001.tar`, ... and return the paths in order.

    Args:
        samples: (key, {extension: bytes}) of each sample, for example ("cup/1", {"jpg": ..., "json": ...}).
        out_dir: folder of the shards; created if missing.
        split: name of the split, for example "train".
        samples_per_shard: maximum number of samples per shard.
        compress: write `.tar.gz`.

    Raises: ShardError if `out_dir` already has shards of this split, or if there is no sample; SampleError and
        DuplicateKey, see `write_shard`.
    """
    if samples_per_shard < 1:
        raise ShardError(f"samples_per_shard={samples_per_shard} must be at least 1.")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    old = sorted(file.name for file in out_dir.glob(f"{split}-*.tar*"))
    if old:
        raise ShardError(
            f"'{out_dir}' already has shards of split '{split}'.", f"found: {', '.join(old)}", fix="remove them first"
        )
    paths: list[Path] = []
    keys: set[str] = set()
    rest = iter(samples)
    while chunk := list(islice(rest, samples_per_shard)):
        path = out_dir / f"{split}-{len(paths):04d}{SUFFIXES[compress]}"
        again = [key for key, _ in chunk if key in keys]
        if again:
            raise DuplicateKey(f"{path.name}: key '{again[0]}' was already written to an earlier shard.")
        write_shard(path, chunk)
        keys.update(key for key, _ in chunk)
        paths.append(path)
    if not paths:
        raise ShardError(f"no sample to write for split '{split}'.")
    return paths


def _write(temporary: Path, members: Members, shard: str) -> int:
    keys: set[str] = set()
    with ExitStack() as stack:
        file: object = stack.enter_context(open(temporary, "wb"))
        if shard.endswith(".gz"):  # no file name and time in the header, which would change the bytes
            file = stack.enter_context(
                gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0)  # type: ignore[call-overload]
            )
        tar = stack.enter_context(tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT))  # type: ignore[call-overload]
        for key, fields in members:
            _check(shard, key, fields)
            if key in keys:
                raise DuplicateKey(f"{shard}: key '{key}' occurs twice.", fix="give every sample its own key")
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
    """Reject names that readers would skip or split differently (WebDataset: at the first dot after the last slash)."""
    base = key.rsplit("/", 1)[-1]
    if not base or "." in base or key.startswith(("/", "__")) or "\0" in key or not is_text(key):
        raise SampleError(
            f"{shard}: {key!r} is not a valid key.",
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
