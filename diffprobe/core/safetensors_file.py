"""Open safetensors files that others wrote: whatever is wrong with one gives one error that names it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.core.errors import DiffprobeError, SchemaError
from diffprobe.core.foreign import refuse_lfs_pointer, require_regular_file

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER = 100_000_000
"""Largest header in bytes, that of the library itself."""


@contextmanager
def open_safetensors(
    path: Path | str, *, error: type[DiffprobeError] = SchemaError, fix: str | None = None
) -> Iterator[Any]:
    """Open a safetensors file for reading; the handle is that of `safetensors.safe_open` for torch, on the CPU.

    Args:
        path: a regular file.
        error: class of the error that is raised.
        fix: the next step of the user, for the error message.

    Raises: FileNotFoundError; `error` for a pipe or device, a git-lfs pointer, a truncated or otherwise invalid file.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    size = require_regular_file(path, error=error, fix=fix)
    with open(path, "rb") as file:
        begin = file.read(64)
    refuse_lfs_pointer(begin, f"'{path}'", error=error, fix=fix)
    header = int.from_bytes(begin[:8], "little")
    if size < 8 or header > min(_MAX_HEADER, size - 8):  # before the file is mapped into memory
        raise error(
            f"'{path}' is not a readable safetensors file: its header of {header:,} bytes does not fit "
            f"into {min(_MAX_HEADER, size):,}.",
            fix=fix,
        )
    try:
        with safe_open(path, framework="pt") as stored:
            yield stored
    except SafetensorError as cause:
        raise error(f"'{path}' is not a readable safetensors file: {cause}.", fix=fix) from cause


def load_safetensors(
    path: Path | str, *, error: type[DiffprobeError] = SchemaError, fix: str | None = None
) -> "dict[str, Tensor]":
    """Read all tensors of a safetensors file into memory. Raises: see `open_safetensors`."""
    with open_safetensors(path, error=error, fix=fix) as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}
