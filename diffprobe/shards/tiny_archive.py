"""Miniature archives in the layout of published data sets, which `tiny` of a data set writes for its tests."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """Write a tar of these files, packed with gzip if its name ends in gz, and return its path.

    Args:
        path: the archive; its folder is made if missing.
        files: name in the archive -> content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(tar_bytes(files), mtime=0) if path.name.endswith("gz") else tar_bytes(files))
    return path


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """Return a plain tar of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return buffer.getvalue()


def tiny_image(number: int, *, size: tuple[int, int] = (12, 8), kind: str = "JPEG") -> bytes:
    """Return an image of one colour, which follows from its number; `size` is width and height in pixels."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", size, (37 * number % 256, 91 * number % 256, 200)).save(buffer, kind)
    return buffer.getvalue()
