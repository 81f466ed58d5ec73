"""Small shard sets, written and indexed by the real code."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.writer import write_shard


def encode(colour: object = "red", mode: str = "RGB", size: tuple[int, int] = (8, 8), kind: str = "png") -> bytes:
    """Encode an image of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)  # type: ignore[arg-type]
    return buffer.getvalue()


def files_of(number: int, **annotation: Any) -> dict[str, bytes]:
    """Make the files of a sample whose grey level and label follow from its number."""
    record = {"label": number % 3, "class_name": "abc"[number % 3], "caption": f"number {number}", **annotation}
    return {"png": encode((number, number, number)), "json": json.dumps(record).encode()}


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., ShardSet]:
    """Return a function that writes shards of the given sizes; `change` edits the files of sample i, called `k<i>`."""

    def make(
        *sizes: int,
        change: Callable[[int, dict[str, bytes]], object] = lambda number, files: None,
        split: str = "train",
        prefix: str = "k",
        on_error: str = "raise",
    ) -> ShardSet:
        start = 0
        for shard, size in enumerate(sizes):
            samples = []
            for number in range(start, start + size):
                files = files_of(number)
                change(number, files)
                samples.append((f"{prefix}{number:03d}", files))
            start += size
            write_shard(tmp_path / f"{split}-{shard:04d}.tar", samples)
        return build_index(tmp_path, name="tiny", licence="CC0", on_error=on_error)

    return make


@pytest.fixture
def png() -> Callable[..., bytes]:
    """Return the function that encodes an image of one colour."""
    return encode


@pytest.fixture
def files() -> Callable[..., dict[str, bytes]]:
    """Return the function that makes the files of a sample."""
    return files_of
