"""Class maps and depth levels of samples, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import ConfigError, SampleError
from diffprobe.shards.class_maps import DenseSample, class_table, read_class_samples, read_depth_samples
from diffprobe.shards.datasets import scenes
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.spec import MASKS
from diffprobe.shards.scenes.world import load_world
from diffprobe.shards.writer import write_shards


def test_maps_are_those_of_the_renderer(tmp_path: Path) -> None:
    rendered = scenes.build(out=tmp_path, n=40, seed=4)
    options = {"fields": rendered.fields, "resolution": 32, "limit": 5}
    found = list(read_class_samples(rendered, "train", classes=MASKS, **options))  # type: ignore[arg-type]
    depth = list(read_depth_samples(rendered, "train", **options))  # type: ignore[arg-type]
    assert len(found) == len(depth) == 5
    indices = [int(one.sample.key.rpartition("-")[2]) for one in found]
    truth = render(load_world(), sample(load_world(), 4, indices))
    for row, (one, level) in enumerate(zip(found, depth, strict=True)):
        assert one.sample.image.size == (32, 32) and one.truth.shape == (64, 64)
        for place, name in enumerate(MASKS):
            assert np.array_equal(one.truth == place, truth.mask(name)[row])
        assert np.array_equal(level.truth, truth.depth[row])


def written(folder: Path, **files: bytes | None) -> ShardSet:
    mask = np.zeros((32, 64), np.uint8)
    mask[:, 20:] = 3
    members = {"png": png(Image.new("RGB", (64, 32))), "json": b"{}", "mask.png": png(Image.fromarray(mask))}
    for name, content in files.items():
        members[name.replace("_", ".")] = content  # type: ignore[assignment]
    write_shards([("one", {name: c for name, c in members.items() if c is not None})], folder, "train")
    return build_index(folder, name="dense", licence="CC0")


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def read(shard_set: ShardSet, classes: dict[str, tuple[int, ...]] | None = None) -> list[DenseSample]:
    classes = classes or {"background": (0,), "thing": (3,)}
    return list(read_class_samples(shard_set, "train", classes=classes, fields=shard_set.fields, resolution=16))


def test_the_map_is_cut_as_the_image_is(tmp_path: Path) -> None:
    (one,) = read(written(tmp_path))
    assert one.truth.shape == (32, 32)
    assert not one.truth[:, :4].any() and one.truth[:, 4:].all()  # 16 of 64 columns are cut off on the left


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (None, "there is no 'mask.png'"),
        (b"no image", "cannot decode 'mask.png'"),
        (png(Image.new("L", (32, 32), 3)), "32 x 32 pixels, the image 64 x 32"),
        (png(Image.new("RGB", (64, 32))), "mode RGB"),
        (png(Image.new("L", (64, 32), 7)), r"value 7, which is in no class; classes have \[0, 3\]"),
    ],
    ids=["missing", "damaged", "size", "mode", "value"],
)
def test_a_damaged_sample_is_named(tmp_path: Path, content: bytes | None, fact: str) -> None:
    with pytest.raises(SampleError, match=fact) as error:
        read(written(tmp_path, mask_png=content))
    assert "train-0000.tar" in str(error.value) and "'one'" in str(error.value)


def test_a_sample_without_depth_is_named(tmp_path: Path) -> None:
    shard_set = written(tmp_path)
    with pytest.raises(SampleError, match=r"'one'.*'depth.png'"):
        list(read_depth_samples(shard_set, "train", fields=shard_set.fields, resolution=16))


@pytest.mark.parametrize(
    ("classes", "fact"),
    [
        ({"one": (0,)}, "there are 1"),
        ({"one": (0,), "two": ()}, "classes.two"),
        ({"one": (0, 4), "two": (4,)}, "the value 4"),
        ({"one": (0,), "two": (300,)}, "300"),
    ],
)
def test_wrong_classes_are_refused(classes: dict[str, tuple[int, ...]], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        class_table(classes)
