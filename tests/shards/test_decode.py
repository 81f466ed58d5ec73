"""Images as RGB at the wanted size; samples that don't fit the index are refused."""

import io
import json
import re
import struct
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import SampleError
from diffprobe.core.image import fit
from diffprobe.shards.annotation import Caps, Fields
from diffprobe.shards.decode import Sample, decode_image, decode_sample
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import RawSample

Png = Callable[..., bytes]
RGB_16_BITS = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000011002000000c0e78f9d0000000c49444154789c6398e300820009"
    "970295994a5e240000000049454e44ae426082"
)
"""One pixel; Pillow reads such a file and can't write one."""


def raw(**files: bytes) -> RawSample:
    return RawSample(key="k1", shard="train-0000.tar", position=0, files=files)


def pixel(data: bytes, name: str = "png") -> Any:
    image = decode_image(raw(**{name: data}), Fields())
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_transparent_parts_are_white(png: Png) -> None:
    assert pixel(png((255, 0, 0, 0), "RGBA")) == (255, 255, 255)
    assert pixel(png((255, 0, 0, 255), "RGBA")) == (255, 0, 0)
    assert pixel(png((0, 0, 0, 51), "RGBA")) == (204, 204, 204)
    assert pixel(png((0, 0), "LA")) == (255, 255, 255)


def test_transparent_palette_and_key_colour_are_white() -> None:
    for image in (Image.new("P", (4, 4), 0), Image.new("RGB", (4, 4), (1, 2, 3))):
        buffer = io.BytesIO()
        image.save(buffer, "png", transparency=0 if image.mode == "P" else (1, 2, 3))
        assert pixel(buffer.getvalue()) == (255, 255, 255)


def test_greyscale_and_formats(png: Png) -> None:
    assert pixel(png(77, "L")) == (77, 77, 77)
    assert pixel(png(1, "1")) == (255, 255, 255)
    assert pixel(png(77, "L", kind="jpeg"), "jpg") == (77, 77, 77)
    assert pixel(png((9, 9, 9), kind="webp"), "webp") == pytest.approx((9, 9, 9), abs=2)


def test_faulty_images_are_named(png: Png) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8))
    for kind, name in (("jpeg", "jpg"), ("png", "png")):
        buffer = io.BytesIO()
        noise.save(buffer, kind)
        with pytest.raises(SampleError, match=rf"train-0000.tar, sample 'k1': cannot decode image '{name}'"):
            decode_image(raw(**{name: buffer.getvalue()[: len(buffer.getvalue()) // 2]}), Fields())
    with pytest.raises(SampleError, match="cannot decode image"):
        decode_image(raw(png=b""), Fields())
    with pytest.raises(SampleError, match="cannot decode image"):  # a format that is not among the three
        decode_image(raw(png=png(kind="gif")), Fields())
    with pytest.raises(SampleError, match="more than 8 bits"):
        decode_image(raw(png=png(40_000, "I;16")), Fields())
    with pytest.raises(SampleError, match="more than 8 bits"):
        decode_image(raw(png=RGB_16_BITS), Fields())


def test_fit_scales_the_shorter_side_and_cuts_the_centre() -> None:
    wide = Image.new("RGB", (60, 20), "white")
    wide.paste("black", (0, 0, 15, 20))
    fitted = fit(wide, 10)
    assert fitted.size == (10, 10)
    assert np.asarray(fitted).min() == 255  # the dark quarter is outside of the middle third
    assert fit(Image.new("RGB", (20, 61)), 10).size == (10, 10)
    assert fit(Image.new("RGB", (7, 7)), 10).size == (10, 10)


def test_fit_leaves_an_image_of_that_size() -> None:
    image = Image.new("RGB", (8, 8))
    assert fit(image, 8) is image


def test_fit_is_antialiased() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.asarray(fit(Image.fromarray(stripes), 8)).astype(int)[:, 2:-2] == pytest.approx(127, abs=8)


@pytest.fixture
def shard_set(make_set: Callable[..., ShardSet], files: Callable[..., dict[str, bytes]]) -> ShardSet:
    def change(number: int, members: dict[str, bytes]) -> None:
        members.update(files(number, attributes={"tone": ["dark", "light"][number % 2]}))

    return make_set(4, change=change)


def sample(shard_set: ShardSet, png: Png, record: object) -> Sample:
    files = {"png": png(size=(16, 8)), "json": json.dumps(record).encode()}
    return decode_sample(raw(**files), shard_set, fields=Fields(), resolution=4)


def test_a_sample_has_its_parts(shard_set: ShardSet, png: Png) -> None:
    found = sample(shard_set, png, {"label": 1, "caption": "c", "attributes": {"tone": "dark"}})
    assert (found.label, found.class_name, found.image.size) == (1, "b", (4, 4))
    assert (found.caption, found.captions, found.attributes) == ("c", ("c",), {"tone": "dark"})
    assert sample(shard_set, png, {"class_name": "c"}).label == 2
    assert sample(shard_set, png, {}).label == -1


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"label": 3}, "label 3 is out of range: the index has 3 classes"),
        ({"label": 0, "class_name": "b"}, "label 0 is 'a' in the index and 'b' here"),
        ({"class_name": "z"}, "class 'z' is not in the index"),
        ({"attributes": {"tone": "green"}}, "attribute tone='green' is not in the index"),
        ({"attributes": {"age": "old"}}, "attribute age='old' is not in the index"),
    ],
)
def test_samples_that_do_not_fit_the_index_are_refused(
    shard_set: ShardSet, png: Png, record: dict[str, Any], message: str
) -> None:
    with pytest.raises(SampleError, match=f"train-0000.tar, sample 'k1': {message}"):
        sample(shard_set, png, record)


def png_header(width: int, height: int, colour: int = 6) -> bytes:
    """Return a PNG that claims a size, with next to no data."""
    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("size", [(13_000, 13_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (67_108_865, 1)])
def test_an_image_of_more_pixels_than_its_cap_is_refused_before_it_is_decoded(size: tuple[int, int]) -> None:
    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(
            SampleError, match=r"pixels, more than 67,108,864, the cap data.caps.image_pixels"
        ) as caught:
            decode_image(raw(png=png_header(*size)), Fields())
    assert f"{size[0]:,} x {size[1]:,}" in caught.value.what
    assert Image.MAX_IMAGE_PIXELS == before


def test_the_cap_of_pixels_can_be_raised_and_lowered(png: Png) -> None:
    data = png(size=(20, 20))
    with pytest.raises(SampleError, match="20 x 20 pixels, more than 399"):
        decode_image(raw(png=data), Fields(), caps=Caps(image_pixels=399))
    assert decode_image(raw(png=data), Fields(), caps=Caps(image_pixels=400)).size == (20, 20)


def test_a_long_image_is_cropped_before_it_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, int]] = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda self, size, *a, **k: sizes.append(size) or resize(self, size, *a, **k)
    )
    assert fit(Image.new("RGB", (1, 20_000)), 512).size == (512, 512)
    assert fit(Image.new("RGB", (20_000, 1)), 512).size == (512, 512)
    assert sizes == [(512, 512)] * 2


def test_both_orders_of_resizing_and_cropping_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (10, 170, 3), dtype=np.uint8))
    cropped_first = np.asarray(fit(noise, 32)).astype(int)
    monkeypatch.setattr("diffprobe.core.image.LONG", 100)
    assert np.abs(np.asarray(fit(noise, 32)).astype(int) - cropped_first).max() <= 1


def test_what_a_store_records_of_a_fault_has_no_text_of_a_library(png: Png) -> None:
    noise = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(noise, "png")
    cut = noise.getvalue()[:800]
    for data in (b"", b"no image", png(kind="gif"), cut, png_header(8, 8), cut[:33]):
        with pytest.raises(SampleError) as caught:
            decode_image(raw(png=data), Fields())
        assert re.fullmatch(
            r"train-0000.tar, sample 'k1': cannot decode image 'png' \((neither JPEG, PNG nor WebP|\w+)\)\.",
            caught.value.what,
        )
