import json

import numpy as np
import pytest
import torch

from diffprobe.core.errors import ConfigError, SchemaError, WeightsMismatch, WeightsMissing
from diffprobe.generative.scene_reader import SceneReader, SceneReaderShape, find_reader, load_reader, to_tensor
from diffprobe.shards.scenes.render import render_batch
from diffprobe.shards.scenes.spec import FACTORS
from diffprobe.shards.scenes.world import load_world

SPEC = load_world()
SMALL = SceneReaderShape(channels=(8, 8), hidden=16, norm_groups=4)


def reader(seed: int = 0) -> SceneReader:
    torch.manual_seed(seed)
    return SceneReader(SPEC, resolution=32, shape=SMALL).eval()


def test_probabilities_sum_to_one_and_roles_follow_hat_and_tool():
    images = render_batch(SPEC, 0, range(3), resolution=32).images
    one = reader()
    found = one.read(images)
    assert set(found) == set(FACTORS)
    for name, values in found.items():
        assert values.shape == (3, len(SPEC.names(name))) and values.sum(1) == pytest.approx(np.ones(3), abs=1e-5)
    with torch.no_grad():
        logs = one(to_tensor(images))
    hats, tools = list(SPEC.hats), list(SPEC.tools)
    product = np.array(
        [
            [
                float((logs["hat"][row, hats.index(role.hat)] + logs["tool"][row, tools.index(role.tool)]).exp())
                for role in SPEC.roles
            ]
            for row in range(3)
        ]
    )
    assert found["role"] == pytest.approx(product / product.sum(1, keepdims=True), rel=1e-4)


def test_a_saved_reader_reads_the_same(tmp_path):
    images = render_batch(SPEC, 0, range(2), resolution=32).images
    one = reader()
    one.save(tmp_path / "runs" / "abc" / "weights")
    for place in ("runs", "runs/abc", "runs/abc/weights"):
        other = load_reader(tmp_path / place, SPEC)
        assert np.array_equal(other.read(images)["role"], one.read(images)["role"])
    assert {path.suffix for path in (tmp_path / "runs" / "abc" / "weights").iterdir()} == {".safetensors", ".json"}


def test_half_the_bytes_read_nearly_the_same(tmp_path):
    images = render_batch(SPEC, 0, range(8), resolution=32).images
    one = reader()
    for name, half in (("whole", False), ("half", True)):
        one.save(tmp_path / name, half=half)
    sizes = [(tmp_path / name / "reader.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    other = load_reader(tmp_path / "half", SPEC)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}
    for name, values in one.read(images).items():
        assert np.abs(other.read(images)[name] - values).max() < 0.01


def test_the_shipped_reader_reads_rendered_images():
    """The shares of its card are of 2,000 scenes; these are the first 200."""
    shipped = load_reader("scenes-reader", SPEC)
    batch = render_batch(SPEC, 3, range(200))
    found = shipped.read(batch.images)
    for name in FACTORS:
        right = (found[name].argmax(1) == batch.scenes.factors[name]).mean()
        assert right > 0.9, (name, right)
    assert sum(path.stat().st_size for path in find_reader("scenes-reader").iterdir()) < 1.5e6


def test_wrong_folders_and_files_are_refused(tmp_path):
    with pytest.raises(WeightsMissing, match="reader.json"):
        load_reader(tmp_path, SPEC)
    for name in ("abc", "def"):
        reader().save(tmp_path / "runs" / name / "weights")
    with pytest.raises(ConfigError, match="abc, def"):
        find_reader(tmp_path / "runs")
    path = tmp_path / "runs" / "abc" / "weights" / "reader.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "world": "0" * 64}))
    with pytest.raises(WeightsMismatch, match="000000000000"):
        load_reader(tmp_path / "runs" / "abc", SPEC)
    path.write_text("{}")
    with pytest.raises(SchemaError, match="reader.json"):
        load_reader(tmp_path / "runs" / "abc", SPEC)
    path.write_text(json.dumps(tree))
    reader(1).save(tmp_path / "other")
    weights = tmp_path / "runs" / "abc" / "weights" / "reader.safetensors"
    weights.write_bytes((tmp_path / "other" / "reader.safetensors").read_bytes())
    with pytest.raises(SchemaError, match="reader.json"):
        load_reader(tmp_path / "runs" / "abc", SPEC)


def test_images_of_another_size_or_type_are_refused():
    images = render_batch(SPEC, 0, range(1)).images
    with pytest.raises(ConfigError, match="64"):
        reader().read(images)
    with pytest.raises(ConfigError, match="float64"):
        reader().read(images / 255)
    with pytest.raises(ConfigError, match="48"):
        SceneReader(SPEC, resolution=48)
    with pytest.raises(ConfigError, match="norm_groups=8"):
        SceneReaderShape(channels=(12,))
