"""Samples as tensors."""

import os
import pickle
import resource
from collections.abc import Callable

import pytest
import torch
from PIL import Image

from diffprobe.core.errors import ShardError
from diffprobe.shards.annotation import Fields
from diffprobe.shards.batch import collate, to_tensor
from diffprobe.shards.decode import decode_sample
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import read_shard
from diffprobe.shards.stream import SampleStream, make_loader


def test_values_lie_in_zero_to_one() -> None:
    image = Image.new("RGB", (3, 2))
    image.putpixel((2, 1), (255, 51, 0))
    tensor = to_tensor(image)
    assert tensor.shape == (3, 2, 3)
    torch.testing.assert_close(tensor[:, 1, 2], torch.tensor([1.0, 0.2, 0.0]))
    assert tensor.sum() == pytest.approx(1.2)


def test_a_batch_keeps_the_order_and_marks_what_is_unknown(
    make_set: Callable[..., ShardSet], files: Callable[..., dict[str, bytes]]
) -> None:
    tones = [{"tone": "light"}, {}, {"tone": "dark"}]
    shard_set = make_set(3, change=lambda number, members: members.update(files(number, attributes=tones[number])))
    raws = list(read_shard(shard_set.root / "train-0000.tar"))
    del raws[1].files["json"]
    batch = collate([decode_sample(raw, shard_set, fields=Fields()) for raw in raws], shard_set)
    assert (batch.keys, batch.captions) == (["k000", "k001", "k002"], ["number 0", "", "number 2"])
    assert batch.label.tolist() == [0, -1, 2]
    assert shard_set.attributes == {"tone": ("dark", "light")}
    assert batch.attributes["tone"].tolist() == [1, -1, 0]
    torch.testing.assert_close(batch.images[:, 0, 0, 0], torch.tensor([0, 1, 2]) / 255)
    moved = batch.to("meta")
    assert len(moved) == 3
    assert {moved.images.device.type, moved.label.device.type, moved.attributes["tone"].device.type} == {"meta"}


def test_unequal_sizes_are_refused(make_set: Callable[..., ShardSet], png: Callable[..., bytes]) -> None:
    shard_set = make_set(2, change=lambda number, files: files.update(png=png(size=(8 + number, 8))))
    raws = read_shard(shard_set.root / "train-0000.tar")
    samples = [decode_sample(raw, shard_set, fields=Fields()) for raw in raws]
    with pytest.raises(ShardError, match="equal size"):
        collate(samples, shard_set)


def test_a_batch_of_many_attributes_takes_few_descriptors(
    make_set: Callable[..., ShardSet], files: Callable[..., dict[str, bytes]]
) -> None:
    """Each tensor that a loader worker sends takes a descriptor until it is read; the limit is often 1,024."""
    names = {f"a{i}": "x" for i in range(400)}
    shard_set = make_set(8, change=lambda number, members: members.update(files(number, attributes=names)))
    stream = SampleStream(shard_set, "train")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    n_open = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 100, hard))
    try:
        batches = list(make_loader(stream, 2, num_workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [len(batch.attributes) for batch in batches] == [400] * 4
    assert batches[1].label.tolist() == [2, 0] and batches[1].attributes["a7"].tolist() == [0, 0]


def test_a_batch_survives_pickling(make_set: Callable[..., ShardSet]) -> None:
    shard_set = make_set(3)
    (batch,) = make_loader(SampleStream(shard_set, "train"), 3)
    again = pickle.loads(pickle.dumps(batch))
    assert again.keys == batch.keys and torch.equal(again.images, batch.images) and again.attributes == {}
    assert torch.equal(again.label, batch.label) and again.captions == batch.captions
