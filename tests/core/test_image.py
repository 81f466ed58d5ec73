"""Images with more than 8 bits per channel are detected; transparency becomes white."""

import io
import struct
import zlib

import pytest
from PIL import Image

from diffprobe.core.image import fit, is_deep, to_rgb


def png(colour_type: int, n_channels: int, bits: int) -> Image.Image:
    """Open a grey PNG of 4 x 4 pixels, which Pillow itself can't write with 16 bits a channel."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = b"\0" + b"\x9c" * (4 * n_channels * bits // 8)
    header = struct.pack(">IIBBBBB", 4, 4, bits, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(4 * row)) + chunk(b"IEND", b"")
    return Image.open(io.BytesIO(b"\x89PNG\r\n\x1a\n" + chunks))


@pytest.mark.parametrize(("colour_type", "n_channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_png_of_16_bits_is_deep_and_one_of_8_is_not(colour_type: int, n_channels: int) -> None:
    assert is_deep(png(colour_type, n_channels, 16))
    assert not is_deep(png(colour_type, n_channels, 8))


@pytest.mark.parametrize("mode", ["I", "I;16", "F"])
def test_modes_without_a_range_are_deep(mode: str) -> None:
    assert is_deep(Image.new(mode, (2, 2)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_of_a_byte_become_rgb(mode: str) -> None:
    image = Image.new(mode, (2, 2))
    assert not is_deep(image) and to_rgb(image).mode == "RGB"
    assert to_rgb(Image.new("RGBA", (2, 2), (0, 0, 0, 51))).getpixel((0, 0)) == (204, 204, 204)


def test_a_mask_is_resized_without_new_values() -> None:
    mask = Image.new("L", (12, 9))
    mask.paste(7, (0, 0, 6, 9))
    found = fit(mask, 4, resample=Image.Resampling.NEAREST)
    assert found.size == (4, 4) and set(found.tobytes()) == {0, 7}
