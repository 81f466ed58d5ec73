"""Pictures: frames at the right place of images of any shape, and a page without images at hand."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from diffprobe.evaluation.page_features import PageFeatures
from diffprobe.evaluation.pictures import PictureLoader, Place, Shown, framed
from diffprobe.features.batch import FeatureTable
from diffprobe.shards.annotation import Fields
from diffprobe.shards.index import ShardSet


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((80, 80), (20, 40, 40, 60)),
        ((160, 80), (60, 40, 80, 60)),  # 40 px are cropped on the left
        ((80, 160), (20, 80, 40, 100)),
    ],
)
def test_a_place_is_on_the_centre_square_that_the_backbone_reads(size, box):
    assert Place(row=2, column=1, height=4, width=4).box(size) == box


def test_a_place_is_named_from_one():
    assert str(Place(row=0, column=7, height=8, width=8)) == "row 1, column 8 of 8 x 8"


@pytest.mark.parametrize("colour", ["black", "white"])
def test_the_frame_is_around_the_place_and_can_be_seen(colour):
    before = Image.new("RGB", (64, 64), colour)
    pixels = np.asarray(framed(before.copy(), Place(row=1, column=2, height=4, width=4))).astype(int)
    changed = np.argwhere((pixels != np.asarray(before)).any(2))
    (top, left), (bottom, right) = changed.min(0), changed.max(0)
    assert 14 <= top <= 16 and 31 <= bottom <= 33 and 30 <= left <= 32 and 47 <= right <= 49
    assert (pixels[20:28, 36:44] == np.asarray(before)[20:28, 36:44]).all()  # the inside stays as it is


def test_a_frame_at_the_edge_of_a_tiny_picture_fits():
    for place in (Place(0, 0, 64, 64), Place(63, 63, 64, 64), Place(0, 0, 1, 1)):
        assert framed(Image.new("RGB", (8, 5)), place).size == (8, 5)


def loader(root, keys, side=16):
    shard_set = ShardSet.load(root)
    table = FeatureTable(
        features={}, keys=keys, label=torch.zeros(len(keys), dtype=torch.long), attributes={},
        captions=[f"caption of {key}" for key in keys], shards=["test-0000.tar"] * len(keys),
    )  # fmt: skip
    features = PageFeatures(
        widths={}, classes=(), attributes={}, table=lambda split: table, iter_tables=lambda split: iter([table]),
        images=(shard_set, Fields()),
    )  # fmt: skip
    return PictureLoader(features, table, side)


def test_pictures_are_small_and_bear_caption_value_and_place(tiny_shards):
    from diffprobe.shards.reader import read_shard

    keys = [raw.key for raw in read_shard(tiny_shards / "test-0000.tar", name="test-0000.tar")]
    shown = [Shown(keys[0], 1.5, Place(0, 0, 2, 2)), Shown(keys[0], -1.0), Shown(keys[1], 2.0)]
    found = loader(tiny_shards, keys).load(shown)
    assert [found[one].value for one in shown] == [1.5, -1.0, 2.0]
    assert found[shown[0]].place == "row 1, column 1 of 2 x 2" and found[shown[1]].place == ""
    assert found[shown[0]].data != found[shown[1]].data and found[shown[0]].caption == f"caption of {keys[0]}"
    assert Image.open(io.BytesIO(found[shown[0]].data)).size == (16, 16)


def test_without_the_shard_there_are_no_pictures_and_a_reason(tiny_shards):
    pictures = loader(tiny_shards, ["nobody"])
    assert pictures.load([Shown("nobody", 1.0)]) == {}
    assert "'nobody'" in pictures.missing
