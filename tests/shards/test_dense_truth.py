"""Points and boxes in the pixels that a backbone gets."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffprobe.core.errors import ConfigError, SampleError, UnknownName
from diffprobe.core.image import fit
from diffprobe.shards.datasets import scenes
from diffprobe.shards.dense_truth import PointSample, placement, read_point_samples, require_points
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.scenes.factors import sample
from diffprobe.shards.scenes.render import render
from diffprobe.shards.scenes.world import load_world
from diffprobe.shards.writer import write_shards

FIGURE = (2, 3, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return scenes.build(out=tmp_path_factory.mktemp("scenes"), n=60, seed=4, samples_per_shard=20)


def test_points_and_box_are_those_of_the_renderer(rendered: ShardSet) -> None:
    found = list(
        read_point_samples(rendered, "train", fields=rendered.fields, resolution=64, box_parts=FIGURE, limit=7)
    )
    assert len(found) == 7
    spec = load_world()
    indices = [int(one.sample.key.rpartition("-")[2].lstrip("0") or 0) for one in found]
    truth = render(spec, sample(spec, 4, indices))
    for row, one in enumerate(found):
        for name, (x, y) in one.points.items():
            assert (x, y) == pytest.approx(tuple(truth.points[name][row]), abs=1e-6)
        rows, columns = np.nonzero(truth.mask("figure")[row] | np.isin(truth.parts[row], (6, 7)))
        assert one.box == (np.ptp(columns) + 1, np.ptp(rows) + 1)


@pytest.mark.parametrize("size", [(64, 64), (96, 48), (50, 200), (33, 47), (640, 30)])
@pytest.mark.parametrize("resolution", [32, 48])
def test_a_point_stays_on_what_it_marks(size: tuple[int, int], resolution: int) -> None:
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    x, y = size[0] // 2, size[1] // 2
    spot = max(3, min(size) // 8)
    pixels[y - spot : y + spot, x - spot : x + spot] = 255
    small = np.asarray(fit(Image.fromarray(pixels), resolution), dtype=float)[..., 0]
    scale, offset = placement(size, resolution)
    rows, columns = np.nonzero(small > 127)
    centre = (columns.mean() + 0.5, rows.mean() + 0.5)
    assert (x * scale[0] - offset[0], y * scale[1] - offset[1]) == pytest.approx(centre, abs=0.76)


def written(folder: Path, **files: bytes | None) -> ShardSet:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(buffer, format="PNG")
    mask = io.BytesIO()
    Image.new("L", (64, 32), 3).save(mask, format="PNG")
    members = {
        "png": buffer.getvalue(), "json": b"{}", "mask.png": mask.getvalue(),
        "points.json": json.dumps({"left": [8, 16], "middle": [32, 16]}).encode(),
    }  # fmt: skip
    for name, content in files.items():
        members[name.replace("_", ".")] = content  # type: ignore[assignment]
    sample = ("one", {name: content for name, content in members.items() if content is not None})
    write_shards([sample], folder, "train")
    return build_index(folder, name="points", licence="CC0")


def read(shard_set: ShardSet, **options: object) -> list[PointSample]:
    return list(read_point_samples(shard_set, "train", fields=shard_set.fields, resolution=32, **options))  # type: ignore[arg-type]


def test_points_outside_the_crop_are_left_out(tmp_path: Path) -> None:
    (one,) = read(written(tmp_path), box_parts=(3,))
    assert one.points == {"middle": (16.0, 16.0)} and one.box == (64.0, 32.0)


@pytest.mark.parametrize(
    ("files", "fact"),
    [
        ({"points_json": None}, "points.json"),
        ({"points_json": b"[1, 2]"}, "name: "),
        ({"points_json": b'{"left": [1]}'}, "name: "),
        ({"points_json": b'{"left": [1, NaN]}'}, "left"),
        ({"mask_png": None}, "mask.png"),
        ({"mask_png": b"no image"}, "cannot decode"),
    ],
)
def test_a_damaged_sample_is_named(tmp_path: Path, files: dict[str, bytes | None], fact: str) -> None:
    with pytest.raises(SampleError, match="sample 'one'") as error:
        read(written(tmp_path, **files), box_parts=(3,))
    assert fact in str(error.value)


def test_a_mask_of_another_size_or_without_the_object_is_refused(tmp_path: Path) -> None:
    small = io.BytesIO()
    Image.new("L", (32, 32), 3).save(small, format="PNG")
    with pytest.raises(SampleError, match=r"32 x 32 pixels, the image 64 x 32"):
        read(written(tmp_path / "a", mask_png=small.getvalue()), box_parts=(3,))
    with pytest.raises(SampleError, match="none of the parts 5"):
        read(written(tmp_path / "b"), box_parts=(5,))


def test_unknown_points_are_refused(rendered: ShardSet) -> None:
    found = list(read_point_samples(rendered, "train", fields=rendered.fields, resolution=64, limit=2))
    assert found[0].box is None and "hat_tip" in require_points(found, (), "train")
    with pytest.raises(UnknownName, match="hat_tip"):
        require_points(found, ("hat_top",), "train")
    with pytest.raises(ConfigError, match="train"):
        require_points([replace(one, points={}) for one in found], (), "train")
