"""Class maps and depth levels of samples, and what is refused."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import ConfigError, SampleError
from diffprobe.shards.class_maps import IGNORED, DenseSample, class_table, read_class_samples, read_depth_samples
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
        ({"one": (0,), "two": (-1,)}, "-1"),
        ({str(i): (i,) for i in range(255)}, "there are 255"),
    ],
)
def test_wrong_classes_are_refused(classes: dict[str, tuple[int, ...]], fact: str) -> None:
    with pytest.raises(ConfigError, match=fact):
        class_table(classes)


def test_ignored_values_are_marked_and_others_still_refused(tmp_path: Path) -> None:
    mask = Image.new("L", (64, 32), 3)
    mask.paste(255, (16, 0, 32, 32))
    shard_set = written(tmp_path / "border", mask_png=png(mask))
    options = {"classes": {"ground": (0,), "thing": (3,)}, "fields": shard_set.fields, "resolution": 16}
    (one,) = read_class_samples(shard_set, "train", ignore=(255,), **options)  # type: ignore[arg-type]
    assert (one.truth[:, :16] == IGNORED).all() and (one.truth[:, 16:] == 1).all()
    with pytest.raises(SampleError, match="value 255"):
        list(read_class_samples(shard_set, "train", ignore=(9,), **options))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="ignore: the value 3"):
        class_table({"ground": (0,), "thing": (3,)}, ignore=(3,))
    with pytest.raises(ConfigError, match="ignore: 256"):
        class_table({"ground": (0,), "thing": (3,)}, ignore=(256,))


def test_depth_of_16_bits_is_read_where_it_is_asked_for(tmp_path: Path) -> None:
    levels = np.arange(32 * 64, dtype=np.uint16).reshape(32, 64) * 7
    shard_set = written(tmp_path, depth_png=png(Image.fromarray(levels)))
    (one,) = read_depth_samples(shard_set, "train", fields=shard_set.fields, resolution=16, wide=True)
    assert one.truth.dtype == np.uint16 and np.array_equal(one.truth, levels[:, 16:48])
    with pytest.raises(SampleError, match="mode I;16"):
        list(read_depth_samples(shard_set, "train", fields=shard_set.fields, resolution=16))
