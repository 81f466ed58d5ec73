"""The binary files of CIFAR-10 and CIFAR-100 (Krizhevsky, 2009): labels, then 32 x 32 pixels, per record."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from diffprobe.core.errors import ShardError
from diffprobe.shards.source_archive import FilePart, read_small

SIDE = 32
"""Height and width in pixels."""
PIXELS = 3 * SIDE * SIDE
"""Bytes of an image: all of red, then green, then blue, each row by row."""
_MOST = 2**30


def records(part: FilePart, name: str, n_labels: int) -> Iterator[tuple[tuple[int, ...], FilePart]]:
    """Yield the labels of each record and the bytes of its image.

    Args:
        part: the file.
        name: of the file, for messages.
        n_labels: bytes before the image, one label each.

    Raises: ShardError if the file does not consist of whole records.
    """
    size, n_bytes = part.size(), n_labels + PIXELS
    if not size or size % n_bytes or size > _MOST:
        raise ShardError(
            f"{name} has {size:,} bytes, which are not records of {n_bytes:,}.",
            f"expected: the binary version, with {n_labels} bytes of labels and {PIXELS:,} of pixels a record",
        )
    with open(part.path, "rb") as file:
        for start in range(0, size, n_bytes):
            file.seek(part.offset + start)
            yield tuple(file.read(n_labels)), part.part(start + n_labels, PIXELS)


def class_names(files: Mapping[str, FilePart], file: str, source: Path) -> list[str]:
    """Return the names of a list, one a line. Raises: ShardError if it is missing or has a name twice."""
    lines = read_small(files[file], file).decode("utf-8", "replace").splitlines()
    names = [line.strip().replace("_", " ") for line in lines if line.strip()]
    if len(set(names)) < len(names) or not names:
        raise ShardError(f"'{source}': {file} has a name twice, or no name.")
    return names


def check_label(label: int, names: Sequence[str], where: str) -> int:
    """Return a label. Raises: ShardError if it has no name."""
    if label >= len(names):
        raise ShardError(f"{where}: label {label} is out of range; the set has {len(names)} names.")
    return label


def to_png(pixels: bytes) -> bytes:
    """Encode the pixels of a record as PNG."""
    import numpy as np
    from PIL import Image

    planes = np.frombuffer(pixels, np.uint8).reshape(3, SIDE, SIDE)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(buffer, "PNG")
    return buffer.getvalue()


def tiny_records(n: int, labels: Sequence[Sequence[int]], *, start: int = 0) -> bytes:
    """Return `n` records whose pixels follow from their number; `labels` are those of each record, in turn."""
    import numpy as np

    found = []
    for number in range(start, start + n):
        pixels = np.random.default_rng(number).integers(0, 256, PIXELS, dtype=np.uint8)
        found.append(bytes(labels[number % len(labels)]) + pixels.tobytes())
    return b"".join(found)
