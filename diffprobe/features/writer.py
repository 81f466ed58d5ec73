"""Writes a feature store: one folder a source shard, which appears under its name only when it is complete.

Owns the bytes (format: PROTOCOL.md). A process that dies leaves no half-written shard behind, so that starting again
continues, and several processes may write different shards of one store without talking. reader.py reads it.
"""

import json
import os
import shutil
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import torch
from torch import Tensor

from diffprobe.core.artifact import write_artifact
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import NonFinite, RunFailed, StoreMismatch
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import Manifest, ShardEntry, cell_file

MANIFEST = "manifest.json"
SAMPLES = "samples.json"
SHARD_KIND = "feature_shard"
SHARD_SCHEMA_VERSION = 1
_TEMPORARY = ".writing-"


@dataclass
class ExtractedBatch:
    """Features of some samples of one shard with their captions, in shard order."""

    batch: FeatureBatch
    captions: list[str]


class StoreWriter:
    """Fills the store of one manifest below `root`, shard by shard.

    Raises: StoreMismatch if the folder of this digest holds another manifest.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.path = Path(root) / manifest.folder
        file = self.path / MANIFEST
        if not file.exists():
            manifest.write(file)
        elif Manifest.read(file).digest != manifest.digest:
            raise StoreMismatch(f"'{self.path}' holds another store than its name says.", fix="move that folder away")
        self._remove_leftovers()

    def pending(self, process: tuple[int, int] = (0, 1)) -> list[ShardEntry]:
        """List the shards that process `i` of `n` has still to write, in order."""
        index, count = process
        return [shard for shard in self.manifest.shards[index::count] if not self.has(shard)]

    def has(self, shard: ShardEntry) -> bool:
        """Tell whether a shard is complete."""
        return (self.path / shard_folder(shard.file)).is_dir()

    def write(
        self, shard: ShardEntry, batches: Iterable[ExtractedBatch], *, left_out: Mapping[str, str] | None = None
    ) -> int:
        """Write one shard and return its number of samples.

        Args:
            batches: the shard's samples in shard order; consumed one at a time, so memory does not grow with the shard.
            left_out: message by key of the samples skipped as faulty; read after the last batch.

        Raises: NonFinite on NaN or infinity, RunFailed if samples are neither there nor left out.
        """
        temporary = self.path / f"{_TEMPORARY}{socket.gethostname()}-{os.getpid()}-{shard_folder(shard.file)}"
        temporary.mkdir()
        try:
            rows = _write_rows(temporary, self.manifest, shard, batches)
            omitted = [{"key": key, "message": message} for key, message in (left_out or {}).items()]
            if len(rows["keys"]) + len(omitted) != shard.n:
                raise RunFailed(
                    f"shard '{shard.file}' gave {len(rows['keys'])} samples and left out {len(omitted)}, of {shard.n}.",
                    fix="check the shard set against its index: diffprobe data verify FOLDER",
                )
            body = {"store": self.manifest.digest, "shard": shard.file, "split": shard.split, "left_out": omitted}
            write_artifact(
                temporary / SAMPLES,
                {**body, **rows},
                kind=SHARD_KIND,
                schema_version=SHARD_SCHEMA_VERSION,
                inputs={"shard": shard.sha256},
            )
            self._publish(temporary, shard)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return len(rows["keys"])

    def finish(self) -> bool:
        """Remove what dead processes left if every shard is there, and tell whether it is."""
        if not all(self.has(shard) for shard in self.manifest.shards):
            return False
        for folder in self.path.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(folder, ignore_errors=True)
        for file in self.path.glob(f".{MANIFEST}.*.tmp"):
            file.unlink(missing_ok=True)
        return True

    def _publish(self, temporary: Path, shard: ShardEntry) -> None:
        try:
            os.rename(temporary, self.path / shard_folder(shard.file))
        except OSError:
            if not self.has(shard):  # a second process with the same part may have been faster: its bytes are equal
                raise

    def _remove_leftovers(self) -> None:
        """Remove the temporary folders of processes of this machine that are gone."""
        own = f"{_TEMPORARY}{socket.gethostname()}-"
        for leftover in self.path.glob(f"{own}*"):
            pid = leftover.name[len(own) :].split("-", 1)[0]
            if pid.isdigit() and not _is_alive(int(pid)):
                shutil.rmtree(leftover, ignore_errors=True)


def shard_folder(file: str) -> str:
    """Name the folder of a source shard; slashes are escaped, so that different shards never meet.

    >>> shard_folder("part/train-0000.tar")
    'part%2Ftrain-0000.tar'
    """
    return quote(file, safe="@+=,")


def _write_rows(
    folder: Path, manifest: Manifest, shard: ShardEntry, batches: Iterable[ExtractedBatch]
) -> dict[str, Any]:
    files: dict[str, _RowFile] = {}
    keys: list[str] = []
    label: list[int] = []
    captions: list[str] = []
    attributes: dict[str, list[int]] = {}
    try:
        for item in batches:
            batch = item.batch
            for cell in manifest.cells:
                values = batch.features[cell]
                _check_finite(values, shard, cell, batch.keys)
                if cell not in files:
                    files[cell] = _RowFile(folder / cell_file(cell), shard.n, tuple(values.shape[1:]))
                files[cell].append(values)
            keys += batch.keys
            label += batch.label.tolist()
            captions += item.captions
            for name, values in batch.attributes.items():
                attributes.setdefault(name, []).extend(values.tolist())
    finally:
        for file in files.values():
            file.close()
    if not keys:
        raise RunFailed(f"shard '{shard.file}' has no usable sample.", fix="remove it from the set, or repair it")
    cells = {
        cell: {"file": file.path.name, "sha256": digest_file(file.path), "shape": [file.n, *file.shape]}
        for cell, file in files.items()
    }
    return {"keys": keys, "label": label, "captions": captions, "attributes": attributes, "cells": cells}


class _RowFile:
    """A safetensors file with one float32 tensor `features`, written row by row.

    safetensors itself writes from memory only; its layout is a length, a JSON header (space-padded) and the raw bytes.
    """

    def __init__(self, path: Path, capacity: int, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.n = path, shape, 0
        self._header_size = -(-len(_header(capacity, shape)) // 8) * 8
        self._file: BinaryIO = open(path, "wb")  # closed by close(), which the shard's finally calls
        self._file.write(struct.pack("<Q", self._header_size) + b" " * self._header_size)

    def append(self, rows: Tensor) -> None:
        plain = rows.detach().to("cpu", torch.float32).contiguous()
        if tuple(plain.shape[1:]) != self.shape:
            raise RunFailed(f"'{self.path.name}' holds rows of {self.shape}, got {tuple(plain.shape[1:])}.")
        self._file.write(plain.numpy().astype("<f4", copy=False).tobytes())
        self.n += len(plain)

    def close(self) -> None:
        self._file.seek(8)
        self._file.write(_header(self.n, self.shape).ljust(self._header_size))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def _header(n: int, shape: tuple[int, ...]) -> bytes:
    size = 4 * n
    for length in shape:
        size *= length
    tensor = {"dtype": "F32", "shape": [n, *shape], "data_offsets": [0, size]}
    return json.dumps({"features": tensor}, separators=(",", ":")).encode()


def _check_finite(values: Tensor, shard: ShardEntry, cell: str, keys: list[str]) -> None:
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        bad = [key for key, good in zip(keys, finite.tolist(), strict=True) if not good]
        raise NonFinite(
            f"cell '{cell}' of shard '{shard.file}' has NaN or infinity in {len(bad)} of {len(keys)} samples.",
            f"first: '{bad[0]}'",
            fix="a half-precision backbone may overflow: try backbone.dtype=float32",
        )


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
