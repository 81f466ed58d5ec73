"""One float32 tensor in a safetensors file, written and read in blocks of rows.

The safetensors library writes from memory only and maps whole files to read them; here, memory does not grow with the
number of rows. The format: the header's length, a JSON header padded with spaces, the raw numbers.
"""

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import RunFailed, SchemaError
from diffprobe.core.foreign import require_regular_file
from diffprobe.core.json_file import parse_json


class RowWriter:
    """Writes the file in blocks of rows; the number of rows is set when it is closed.

    Args:
        path: file to write.
        name: the tensor's name.
        capacity: maximum number of rows.
        shape: shape of a row.
    """

    def __init__(self, path: Path, name: str, capacity: int, shape: tuple[int, ...]) -> None:
        self.path, self.shape, self.n = path, shape, 0
        self._name = name
        self._header_size = -(-len(_header(name, capacity, shape)) // 8) * 8
        self._file: BinaryIO = open(path, "wb")  # closed by close() or abandon()
        self._file.write(struct.pack("<Q", self._header_size) + b" " * self._header_size)

    def append(self, rows: Float[Tensor, "rows ..."]) -> None:
        """Append rows. Raises: RunFailed for another shape, OSError if the disk is full."""
        plain = rows.detach().to("cpu", torch.float32).contiguous()
        if tuple(plain.shape[1:]) != self.shape:
            raise RunFailed(f"'{self.path.name}' has rows of shape {self.shape}, got {tuple(plain.shape[1:])}.")
        self._file.write(plain.numpy().astype("<f4", copy=False).tobytes())
        self.n += len(plain)

    def close(self) -> None:
        """Complete the file and flush it to the disk."""
        self._file.seek(8)
        self._file.write(_header(self._name, self.n, self.shape).ljust(self._header_size))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close an incomplete file, also on a full disk; no effect on a complete file."""
        try:
            self._file.close()
        except OSError:  # the buffer could not be written, but the file will be deleted
            pass


def rows_shape(path: Path, name: str) -> tuple[int, ...]:
    """Return the shape of the tensor, rows first.

    Raises: SchemaError if the length of the file does not match its header, or it has another content.
    """
    return _read_header(path, name)[0]


def read_rows(path: Path, name: str, batch_size: int) -> Iterator[Float[Tensor, "rows ..."]]:
    """Yield the rows in order, `batch_size` at a time. Raises: SchemaError, see `rows_shape`."""
    shape, start = _read_header(path, name)
    size = math.prod(shape[1:])
    with open(path, "rb") as file:
        file.seek(start)
        for first in range(0, shape[0], batch_size):
            n = min(batch_size, shape[0] - first)
            values = np.frombuffer(bytearray(file.read(4 * n * size)), dtype="<f4")
            yield torch.from_numpy(values.astype(np.float32, copy=False)).reshape(n, *shape[1:])


def _header(name: str, n: int, shape: tuple[int, ...]) -> bytes:
    tensor = {"dtype": "F32", "shape": [n, *shape], "data_offsets": [0, 4 * n * math.prod(shape)]}
    return json.dumps({name: tensor}, separators=(",", ":")).encode()


def _read_header(path: Path, name: str) -> tuple[tuple[int, ...], int]:
    try:
        require_regular_file(path, error=SchemaError)
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            tensor = parse_json(file.read(min(length, 2**20)), where=f"the header of '{path}'")[name]
        shape, (first, last) = tuple(tensor["shape"]), tensor["data_offsets"]
        if not all(type(n) is int and n >= 0 for n in (*shape, first, last)):
            raise TypeError("sizes")
        whole = tensor["dtype"] == "F32" and first == 0 and last == 4 * math.prod(shape)
    except SchemaError:
        raise
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise SchemaError(f"'{path}' has no tensor '{name}' ({type(error).__name__}).") from error
    if not whole or path.stat().st_size != 8 + length + last:
        raise SchemaError(f"'{path}' has another length than its header states; it may be truncated.")
    return shape, 8 + length
