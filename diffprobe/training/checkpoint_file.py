"""The file of a checkpoint: replaced in one step, with a checksum that is compared when it is read.

The checksum is the comment of the zip archive that torch writes, so that one file cannot come apart, and `torch.load`
reads it as any other.
"""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO

from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import RunFailed, SchemaError

_MARK = b"diffprobe checkpoint, sha256 of the bytes before: "
_LENGTH = len(_MARK) + 64
_END = b"PK\x05\x06"
_END_BYTES = 22
"""Signature and length of the record that ends a zip archive without a comment; its last two bytes are the length of
the comment."""
_FIX = "trainer.resume=false starts anew"
_KEYS = ("state_dict", "loops", "optimizer_states", "lr_schedulers")


class CheckpointFile(CheckpointIO):
    """How the Trainer writes and reads checkpoints: atomic, flushed to the disk, with a checksum, without pickle."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object | None = None
    ) -> None:
        """Write a checkpoint; a failure or a kill at any point leaves the one before.

        Raises: RunFailed where it cannot be written, for example on a full disk.
        """
        write_checkpoint(checkpoint, path)

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., Any] | None = lambda storage, location: storage,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Read a checkpoint: tensors and plain values alone, whatever `weights_only` is. Raises: SchemaError."""
        return read_checkpoint(path, map_location=map_location)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, if it exists."""
        Path(path).unlink(missing_ok=True)


def write_checkpoint(checkpoint: Mapping[str, Any], path: str | Path) -> str:
    """Write a checkpoint with its checksum in one step, and return the checksum.

    Raises: RunFailed, which names the file and the cause.
    """
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    data = buffer.getbuffer()
    if bytes(data[-_END_BYTES:][:4]) != _END:
        raise RunFailed(f"torch wrote a checkpoint for '{path}' that does not end like a zip archive.")
    content = data[:-2]
    checksum = hashlib.sha256(content).hexdigest()
    comment = _MARK + checksum.encode()
    try:
        with atomic_file(path) as temporary, open(temporary, "wb") as file:
            file.write(content)
            file.write(len(comment).to_bytes(2, "little") + comment)
    except OSError as error:
        raise RunFailed(
            f"the checkpoint '{path}' cannot be written: {error.strerror or error}.",
            f"it has {len(data):,} bytes; the checkpoint before it is whole",
            fix=f"make room in '{Path(path).parent}', then run the command again to continue from there",
        ) from error
    return checksum


def verify_checkpoint(path: str | Path) -> str:
    """Compare a checkpoint with its checksum, without loading it, and return the checksum.

    Raises: SchemaError, which names the file and `trainer.resume=false`, if it is not a regular file, is truncated,
        damaged, or was written without a checksum.
    """
    path = Path(path)
    if not path.is_file():
        raise SchemaError(f"the checkpoint '{path}' is not a regular file.", fix=_FIX)
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(size - _LENGTH, 0))
        comment = file.read()
        if not comment.startswith(_MARK):
            raise SchemaError(
                f"the checkpoint '{path}' is truncated, damaged, or of an earlier version: it does not end with a"
                " checksum.",
                f"it has {size:,} bytes",
                fix=_FIX,
            )
        file.seek(0)
        found, left = hashlib.sha256(), size - _LENGTH - 2
        while left > 0 and (block := file.read(min(left, 2**20))):
            found.update(block)
            left -= len(block)
    saved = comment[len(_MARK) :].decode("ascii", "replace")
    if found.hexdigest() != saved:
        raise SchemaError(
            f"the checkpoint '{path}' is damaged: it is not what was written.",
            f"sha256: written {saved}, is {found.hexdigest()}",
            fix=_FIX,
        )
    return saved


def read_checkpoint(
    path: str | Path, *, map_location: Callable[..., Any] | str | None = "cpu", keys: Sequence[str] = _KEYS
) -> dict[str, Any]:
    """Read a checkpoint of a training run, after `verify_checkpoint`.

    Args:
        path, map_location: see `torch.load`.
        keys: what it has to have.

    Raises: SchemaError if it is damaged, or is not the checkpoint of a training run.
    """
    verify_checkpoint(path)
    try:
        found = torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the reader of torch raises many classes
        raise SchemaError(
            f"the checkpoint '{path}' cannot be read: {str(error).splitlines()[0] if str(error) else repr(error)}.",
            fix=_FIX,
        ) from error
    missing = [key for key in keys if key not in found] if isinstance(found, dict) else list(keys)
    if missing:
        raise SchemaError(
            f"the checkpoint '{path}' is not that of a training run.", f"missing: {', '.join(missing)}", fix=_FIX
        )
    return dict(found)
