"""Masks of parts from shards: stored, of transparency, of a plain background; resized as images are."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import SampleError
from diffprobe.evaluation.part_masks import outside_plain, read_masks
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.writer import write_shard


def png(pixels, mode=None):
    buffer = io.BytesIO()
    Image.fromarray(pixels, mode).save(buffer, "PNG")
    return buffer.getvalue()


def masks_of(tmp_path, samples, size=(4, 4), name="drawings"):
    for split in ("train", "val", "test"):
        members = [
            (f"{split}-{i}", {**files, "json": json.dumps({"label": 0, "caption": "c"}).encode()})
            for i, files in enumerate(samples)
        ]
        write_shard(tmp_path / f"{split}-0000.tar", members)
    build_index(tmp_path, name=name, licence="CC0-1.0")
    shard_set = ShardSet.load(tmp_path)
    keys = [f"test-{i}" for i in range(len(samples))]
    return read_masks(shard_set, "test", keys, size, fields=Fields())


def drawing(side=16, colour=(200, 30, 30)):
    """A square of 4 pixels from (4, 8) on white."""
    pixels = np.full((side, side, 3), 255, np.uint8)
    pixels[4:8, 8:12] = colour
    return pixels


def square_at(size, cells):
    found = np.zeros(size, bool)
    for row, column in cells:
        found[row, column] = True
    return found.reshape(-1)


def test_the_foreground_of_a_drawing_on_white(tmp_path):
    pixels = drawing()
    pixels[5, 9] = 255  # white that the background does not reach
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    found = masks_of(tmp_path, [{"png": png(pixels)}, {"png": png(photo)}])
    assert found.names == ("foreground", "background") and "one colour" in found.source
    assert list(found.covered) == ["test-0"]
    np.testing.assert_array_equal(found.covered["test-0"][0], square_at((4, 4), [(1, 2)]))
    np.testing.assert_array_equal(found.covered["test-0"][1], ~square_at((4, 4), [(1, 2)]))
    mask = outside_plain(pixels)
    assert mask.sum() == 16 and mask[5, 9] == 1
    assert outside_plain(photo) is None


def test_transparency_is_the_foreground(tmp_path):
    pixels = np.dstack([drawing(colour=(255, 255, 255)), np.zeros((16, 16), np.uint8)])
    pixels[4:8, 8:12, 3] = 255
    found = masks_of(tmp_path, [{"png": png(pixels)}])
    assert found.names[0] == "foreground" and "transparency" in found.source
    np.testing.assert_array_equal(found.covered["test-0"][0], square_at((4, 4), [(1, 2)]))


def test_stored_masks_have_the_parts_of_their_set(tmp_path):
    ids = np.zeros((16, 16), np.uint8)
    ids[4:8, 8:12], ids[12:, :4] = 6, 1
    files = [{"png": png(drawing()), "mask.png": png(ids)}]
    found = masks_of(tmp_path / "a", files)
    assert found.names == ("background", "part 1", "part 6")
    np.testing.assert_array_equal(found.covered["test-0"][2], square_at((4, 4), [(1, 2)]))
    found = masks_of(tmp_path / "b", files, name="scenes")
    assert found.names == ("background", "object", "figure", "hat", "tool")
    of = dict(zip(found.names, found.covered["test-0"], strict=True))
    np.testing.assert_array_equal(of["hat"], square_at((4, 4), [(1, 2)]))
    np.testing.assert_array_equal(of["object"], square_at((4, 4), [(3, 0)]))
    assert not of["tool"].any()


def test_masks_are_cropped_as_images_are(tmp_path):
    """Of an image of 8 x 24, the centre square is read: the map has nothing of the ends."""
    ids = np.zeros((8, 24), np.uint8)
    ids[:, :8], ids[:4, 8:12] = 3, 2
    found = masks_of(tmp_path, [{"png": png(np.zeros((8, 24, 3), np.uint8)), "mask.png": png(ids)}], size=(2, 2))
    assert found.names == ("background", "part 2")
    np.testing.assert_array_equal(found.covered["test-0"][1], square_at((2, 2), [(0, 0)]))


@pytest.mark.parametrize(
    ("mask", "pattern"), [(png(np.zeros((8, 8), np.uint8)), r"\(8, 8\)"), (b"no image", "cannot be read"),
                          (png(np.zeros((16, 16, 3), np.uint8)), "RGB")],
)  # fmt: skip
def test_masks_of_another_form_are_refused(tmp_path, mask, pattern):
    with pytest.raises(SampleError, match=rf"test-0000.tar, sample 'test-0'[\s\S]*{pattern}"):
        masks_of(tmp_path, [{"png": png(drawing()), "mask.png": mask}])
