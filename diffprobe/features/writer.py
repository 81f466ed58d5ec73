"""Write a store: one folder per source shard, which is renamed to its final name when complete.

The layout is in PROTOCOL.md. An interrupted process leaves no partial shard, so that a restart continues, and several
processes can write different shards of one store without communication.
"""

import errno
import os
import resource
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from diffprobe.core.artifact import write_artifact
from diffprobe.core.atomic_file import flush_folder
from diffprobe.core.claim import abandoned, claim
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import NonFinite, RunFailed, StoreMismatch
from diffprobe.features.batch import FeatureBatch
from diffprobe.features.manifest import SHARD_KINDS, TENSORS, Manifest, ShardEntry, cell_file
from diffprobe.features.tensor_file import RowWriter

MANIFEST = "manifest.json"
SAMPLES = "samples.json"
SHARD_SCHEMA_VERSION = 2
TEMPORARY = ".writing-"
"""Prefix of the names of incomplete folders."""
_OTHER_FILES = 256
"""Allowance for open files other than those of the cells: shards, workers, libraries."""
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no space, quota exceeded, file size limit


@dataclass
class ExtractedBatch:
    """Features (or latents) of some samples of one shard with their captions, in shard order."""

    batch: FeatureBatch
    captions: list[str]

    def __len__(self) -> int:
        return len(self.batch)


class StoreWriter:
    """Writes the store of one manifest below `root`, shard by shard.

    Raises: StoreMismatch if the folder of this digest has another manifest; RunFailed if this process cannot open one
        file per cell.
    """

    def __init__(self, root: Path, manifest: Manifest) -> None:
        _allow_files(len(manifest.cells))
        self.manifest = manifest
        self.path = Path(root) / manifest.folder
        file = self.path / MANIFEST
        if not file.exists():
            with self._disk():
                manifest.write(file)
                flush_folder(Path(root))
        elif Manifest.read(file, kind=manifest.kind).digest != manifest.digest:
            raise StoreMismatch(f"'{self.path}' has the manifest of another store.", fix="move that folder away")
        self._remove_leftovers()

    def pending(self, process: tuple[int, int] = (0, 1)) -> list[ShardEntry]:
        """List the shards that process `i` of `n` still has to write, in order."""
        index, count = process
        return [shard for shard in self.manifest.shards[index::count] if not self.has(shard)]

    def has(self, shard: ShardEntry) -> bool:
        """Return whether a shard is complete."""
        return (self.path / shard_folder(shard.file)).is_dir()

    def write(
        self, shard: ShardEntry, batches: Iterable[ExtractedBatch], *, left_out: Mapping[str, str] | None = None
    ) -> None:
        """Write one shard.

        Args:
            batches: the shard's samples in shard order; consumed one by one, so memory does not grow with the shard.
            left_out: key -> message of the faulty samples that were skipped; read after the last batch.

        Raises: NonFinite on NaN or infinity; RunFailed if samples are missing or the disk is full. Complete shards are
            kept.
        """
        with ExitStack() as stack:
            with self._disk():
                temporary = self.path / stack.enter_context(claim(self.path, TEMPORARY))
                temporary.mkdir()
            self._write(temporary, shard, batches, {} if left_out is None else left_out)

    def _write(
        self, temporary: Path, shard: ShardEntry, batches: Iterable[ExtractedBatch], left_out: Mapping[str, str]
    ) -> None:
        try:
            rows = self._write_rows(temporary, shard, batches)
            omitted = [{"key": key, "message": message} for key, message in left_out.items()]
            if len(rows["keys"]) + len(omitted) != shard.n:
                raise RunFailed(
                    f"shard '{shard.file}': {len(rows['keys'])} samples, {len(omitted)} left out, expected {shard.n}.",
                    fix="verify the shard set: diffprobe data verify FOLDER",
                )
            body = {"store": self.manifest.digest, "shard": shard.file, "split": shard.split, "left_out": omitted}
            with self._disk():
                write_artifact(
                    temporary / SAMPLES,
                    {**body, **rows},
                    kind=SHARD_KINDS[self.manifest.kind],
                    schema_version=SHARD_SCHEMA_VERSION,
                    inputs={"shard": shard.sha256},
                )
                self._publish(temporary, shard)
        except FileNotFoundError:
            if not self.has(shard):  # another process with the same part has written it and cleaned up
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def finish(self) -> bool:
        """If all shards are complete, remove leftovers of dead processes. Returns: whether the store is complete."""
        if not all(self.has(shard) for shard in self.manifest.shards):
            return False
        remove_leftovers(self.path)
        return True

    def _write_rows(self, folder: Path, shard: ShardEntry, batches: Iterable[ExtractedBatch]) -> dict[str, Any]:
        files: dict[str, RowWriter] = {}
        keys: list[str] = []
        label: list[int] = []
        captions: list[str] = []
        attributes: dict[str, list[int]] = {}
        try:
            for item in batches:
                batch = item.batch
                for cell in self.manifest.cells:
                    values = batch.features[cell]
                    _check_finite(values, shard, cell, batch.keys)
                    with self._disk():
                        if cell not in files:
                            files[cell] = self._open(folder, cell, shard.n, tuple(values.shape[1:]))
                        files[cell].append(values)
                keys += batch.keys
                label += batch.label.tolist()
                captions += item.captions
                for name, ids in batch.attributes.items():
                    attributes.setdefault(name, []).extend(ids.tolist())
            with self._disk():
                for file in files.values():
                    file.close()
        finally:
            for file in files.values():
                file.abandon()
        if not keys:
            raise RunFailed(f"shard '{shard.file}' has no valid sample.", fix="remove it from the set, or repair it")
        cells = {
            cell: {"file": file.path.name, "sha256": digest_file(file.path), "shape": [file.n, *file.shape]}
            for cell, file in files.items()
        }
        return {"keys": keys, "label": label, "captions": captions, "attributes": attributes, "cells": cells}

    def _open(self, folder: Path, cell: str, n: int, shape: tuple[int, ...]) -> RowWriter:
        return RowWriter(folder / cell_file(cell), TENSORS[self.manifest.kind], n, shape)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Raise RunFailed, with the complete shards and the fix, if the disk is full."""
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            shards = self.manifest.shards
            missing = self.pending()
            raise RunFailed(
                f"the disk of '{self.path}' is full ({error.strerror}).",
                f"complete and kept: {len(shards) - len(missing)} of {len(shards)} shards; next: '{missing[0].file}'"
                if missing
                else f"all {len(shards)} shards are complete",
                fix="free some space (or raise the quota) and run the same command again: it continues",
            ) from error

    def _publish(self, temporary: Path, shard: ShardEntry) -> None:
        flush_folder(temporary)
        try:
            os.rename(temporary, self.path / shard_folder(shard.file))
        except OSError:
            if not self.has(shard):  # a second process with the same part has written equal bytes
                raise
        flush_folder(self.path)

    def _remove_leftovers(self) -> None:
        """Remove the temporary folders of the processes of this machine that have ended."""
        with abandoned(self.path, TEMPORARY) as names:
            for name in names:
                shutil.rmtree(self.path / name, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in the folder of a complete store; a read-only folder stays as it is."""
    for leftover in (*folder.glob(f"{TEMPORARY}*"), *folder.glob(f".{MANIFEST}.*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with suppress(OSError):
                leftover.unlink()


def shard_folder(file: str) -> str:
    """Return the folder name of a source shard; slashes are escaped.

    >>> shard_folder("part/train-0000.tar")
    'part%2Ftrain-0000.tar'
    """
    return quote(file, safe="@+=,")


def _allow_files(n: int) -> None:
    """Raise the soft limit of open files (often 1,024) for `n` cells. Raises: RunFailed beyond the hard limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = n + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise RunFailed(
            f"{n:,} cells are written at once, one file each, but this process can open {hard:,} files only.",
            f"needed: {needed:,}, including {_OTHER_FILES} for other files",
            fix=f"raise the hard limit (ulimit -Hn {needed}), or extract fewer taps or timesteps at once",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_finite(values: Tensor, shard: ShardEntry, cell: str, keys: list[str]) -> None:
    finite = torch.isfinite(values).flatten(1).all(1)
    if not finite.all():
        bad = [key for key, good in zip(keys, finite.tolist(), strict=True) if not good]
        raise NonFinite(
            f"cell '{cell}' of shard '{shard.file}' has NaN or infinity in {len(bad)} of {len(keys)} samples.",
            f"first: '{bad[0]}'",
            fix="a half-precision backbone may overflow: try backbone.dtype=float32",
        )
