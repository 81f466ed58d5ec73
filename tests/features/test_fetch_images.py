"""Images by key, from the shards that hold them and no others."""

import pytest
from PIL import Image

from diffprobe.core.errors import SampleError
from diffprobe.features.fetch_images import fetch_images
from diffprobe.shards.index import ShardSet
from diffprobe.shards.stream import SampleStream


@pytest.fixture
def shard_set(tiny_shards):
    return ShardSet.load(tiny_shards)


def test_images_are_those_of_the_keys_in_their_order(shard_set):
    samples = {sample.key: sample for sample in SampleStream(shard_set, "train")}
    keys = list(reversed(samples))[:5]
    images = fetch_images(shard_set, keys)
    assert list(images) == keys
    for key, image in images.items():
        assert isinstance(image, Image.Image)
        assert image.tobytes() == samples[key].image.tobytes()


def test_only_the_shards_that_hold_the_keys_are_opened(shard_set, tmp_path):
    import dataclasses
    import shutil

    sample = next(iter(SampleStream(shard_set, "val")))
    shutil.copy(shard_set.root / sample.shard, tmp_path / sample.shard)  # the other shards are not there at all
    alone = dataclasses.replace(shard_set, root=tmp_path)
    images = fetch_images(alone, [sample.key], shards={sample.key: sample.shard})
    assert images[sample.key].tobytes() == sample.image.tobytes()


def test_keys_that_are_not_there_are_named(shard_set):
    sample = next(iter(SampleStream(shard_set, "val")))
    with pytest.raises(SampleError, match="1 of 2 samples.*'nobody'"):
        fetch_images(shard_set, [sample.key, "nobody"])
