from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffprobe.backbones.preprocess import as_batch
from diffprobe.core.errors import ConfigError


def gradient(width: int, height: int) -> Image.Image:
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.stack([np.tile(row, (height, 1))] * 3, axis=-1))


def test_pil_images_of_the_right_size_keep_every_value() -> None:
    image = gradient(32, 32)
    batch = as_batch([image, image], 32)
    assert batch.shape == (2, 3, 32, 32)
    assert torch.equal(batch[0], torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255)


def test_the_shorter_side_is_resized_and_the_centre_cut_out() -> None:
    batch = as_batch([gradient(128, 32)], 16)  # becomes 64 x 16, of which columns 24..40 stay
    assert batch.shape == (1, 3, 16, 16)
    assert batch[0, 0, 8].tolist() == pytest.approx([(x + 0.5) / 64 for x in range(24, 40)], abs=0.02)


def test_transparency_is_laid_on_white_and_grey_becomes_colour() -> None:
    clear = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert float(as_batch([clear], 16).min()) == 1.0
    assert as_batch([Image.new("L", (16, 16), 51)], 16).unique().tolist() == pytest.approx([0.2])


def test_the_stream_of_shards_prepares_images_alike() -> None:
    from diffprobe.core.image import fit

    for size in ((101, 67), (3, 200), (900, 20)):  # the last two are cropped before they are resized
        image = gradient(*size)
        assert torch.equal(as_batch([image], 32), as_batch([fit(image, 32)], 32))


def test_long_images_are_not_resized_whole() -> None:
    """1 x 20,000 px resized to 512 would be 512 x 10,240,000."""
    assert as_batch([Image.new("RGB", (1, 20_000))], 512).shape == (1, 3, 512, 512)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pil_images_of_more_than_8_bits_are_refused(dtype: type) -> None:
    deep = Image.fromarray(np.linspace(0, 1, 256).reshape(16, 16).astype(dtype))
    with pytest.raises(ConfigError, match="8 bits"):
        as_batch([deep], 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.zeros(3, 16, 16), r"\[3, 16, 16\]"),
        (torch.zeros(1, 3, 32, 32), "32 x 32 px for an extractor at 16"),
        (torch.full((1, 3, 16, 16), -1.0), r"\[-1, -1\]"),
        (torch.full((1, 3, 16, 16), 255.0), r"\[255, 255\]"),
        (torch.full((1, 3, 16, 16), float("nan")), "nan"),
    ],
)
def test_tensors_that_are_not_as_promised_are_refused(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        as_batch(images, 16)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (gradient(16, 16), r"a Image.*\[image\]"),
        (np.zeros((1, 16, 16, 3), np.uint8), "a ndarray.*fromarray"),
        ([np.zeros((16, 16, 3), np.uint8)], "a list with a ndarray.*fromarray"),
        ([torch.zeros(3, 16, 16)], "a list with a Tensor.*torch.stack"),
        ("a.png", "a str.*open"),
        (["a.png"], "a list with a str.*open"),
        ([Path("a.png")], "a list with a PosixPath"),
        ([gradient(16, 16), None], "a list with a NoneType"),
        (iter([gradient(16, 16)]), "a list_iterator"),
        ({"a": gradient(16, 16)}, "a dict"),
        (None, "a NoneType"),
        ([Image.new("RGB", (0, 4))], "0 x 4 px"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_what_notebooks_pass_is_named_with_what_to_write(images: object, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        as_batch(images, 16)  # type: ignore[arg-type]
