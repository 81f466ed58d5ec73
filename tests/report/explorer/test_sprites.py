"""Sprite sheets: each image is in its cell, small, transparent and missing ones included."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import SampleError
from diffprobe.report.explorer.sprites import COLUMNS, LARGEST_SIDE, TINY_COLUMNS, TINY_SIDE, SpriteSheets, decode
from tests.report.explorer.example import picture

COLOURS = ["red", "lime", "blue", "yellow", "black"]


def centre(file: Path, columns: int, side: int, cell: int) -> tuple[int, ...]:
    with Image.open(file) as sheet:
        left, top = cell % columns * side, cell // columns * side
        return tuple(sheet.convert("RGB").getpixel((left + side // 2, top + side // 2)))  # type: ignore[arg-type]


def test_each_image_is_in_its_cell(tmp_path: Path) -> None:
    sheets = SpriteSheets(tmp_path)
    for i in range(105):
        sheets.add(f"k{i}", None if i == 3 else picture(8, COLOURS[i % 5]))
    sheets.close()
    assert sheets.n_pictures == 104 and sheets.sides == [8, 8]
    assert sorted(file.name for file in (tmp_path / "sprites").iterdir()) == ["0000.jpg", "0001.jpg"]
    with Image.open(tmp_path / "sprites" / "0001.jpg") as last:
        assert last.size == (8 * COLUMNS, 8)  # five images: one row
    for i in range(105):
        expected = (222, 221, 217) if i == 3 else Image.new("RGB", (1, 1), COLOURS[i % 5]).getpixel((0, 0))
        large = centre(tmp_path / "sprites" / f"{i // 100:04d}.jpg", COLUMNS, 8, i % 100)
        tiny = centre(tmp_path / "tiny" / "0000.jpg", TINY_COLUMNS, TINY_SIDE, i)
        assert np.abs(np.subtract(large, expected)).max() < 12 and np.abs(np.subtract(tiny, expected)).max() < 12


def test_a_cell_is_as_large_as_the_largest_thumbnail_of_its_sheet(tmp_path: Path) -> None:
    sheets = SpriteSheets(tmp_path)
    sheets.add("small", picture(10))
    sheets.add("large", picture(1000))
    sheets.close()
    assert sheets.sides == [LARGEST_SIDE]


def test_an_image_that_is_not_square_keeps_its_shape_and_gaps_are_white() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (400, 100), "red").save(stream, "PNG")
    assert decode("k", stream.getvalue()).size == (LARGEST_SIDE, LARGEST_SIDE // 4)


def test_transparent_parts_are_white() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(stream, "PNG")
    assert decode("k", stream.getvalue()).getpixel((1, 1)) == (255, 255, 255)


def test_no_pictures_at_all(tmp_path: Path) -> None:
    sheets = SpriteSheets(tmp_path)
    for i in range(3):
        sheets.add(str(i), None)
    sheets.close()
    assert sheets.n_pictures == 0


@pytest.mark.parametrize("form", ["GIF", "BMP"])
def test_other_formats_are_refused(form: str) -> None:
    with pytest.raises(SampleError, match="image 'key-7'"):
        decode("key-7", picture(4, form=form))


@pytest.mark.parametrize("encoded", [b"", b"GIF89a", picture()[:40], b"\x89PNG\r\n\x1a\n" + b"\0" * 30])
def test_a_damaged_thumbnail_is_named(encoded: bytes) -> None:
    with pytest.raises(SampleError, match="image 'key-7'"):
        decode("key-7", encoded)


def test_a_huge_thumbnail_is_refused_before_it_is_decoded() -> None:
    stream = io.BytesIO()
    Image.new("1", (9000, 9000)).save(stream, "PNG")
    with pytest.raises(SampleError, match="9000 x 9000"):
        decode("k", stream.getvalue())
