"""The rendered set as shards: splits, pairs, worlds, and the command that builds it."""

import io
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError, DiffprobeError, ShardError, UnknownName
from diffprobe.shards.datasets import scenes
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import read_shard
from diffprobe.shards.scenes.render import render_batch
from diffprobe.shards.scenes.world import SHIPPED, load_world
from diffprobe.shards.verify import verify


def rows(shard_set: ShardSet) -> dict[str, tuple[str, dict[str, Any], dict[str, bytes]]]:
    """Return key -> split, annotation and files."""
    return {
        raw.key: (shard.split, json.loads(raw.files["json"]), dict(raw.files))
        for shard in shard_set.shards
        for raw in read_shard(shard_set.root / shard.file)
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return scenes.build(out=tmp_path_factory.mktemp("scenes"), n=400, seed=3, samples_per_shard=150)


def test_the_set_has_every_scene_once_in_its_split(built: ShardSet) -> None:
    found = rows(built)
    assert sorted(found) == [f"planted-3-{index:08d}" for index in range(400)]
    assert built.splits() == ("held_out_combinations", "held_out_values", "test", "train", "val")
    assert built.classes == load_world().names("role") and built.group is None and built.name == "scenes"
    assert max(shard.n_samples for shard in built.shards) == 150
    spec = load_world()
    held = {tuple(spec.values[name][code] for name, code in zip(("role", "texture", "colour"), triple, strict=True))
            for triple in spec.splits.combinations}  # fmt: skip
    for split, record, _ in found.values():
        attributes = record["attributes"]
        triple = tuple(attributes[name] for name in ("role", "texture", "colour"))
        assert (attributes["object"] == "star") == (split == "held_out_values")
        assert (triple in held and attributes["object"] != "star") == (split == "held_out_combinations")
    assert verify(built).faults == ()


def test_images_are_those_of_the_renderer(built: ShardSet) -> None:
    drawn = render_batch(load_world(), 3, range(400))
    for key, (_, _, files) in rows(built).items():
        assert (np.array(Image.open(io.BytesIO(files["png"]))) == drawn.images[int(key[-8:])]).all()


def test_pairs_follow_one_another_and_are_grouped(tmp_path: Path) -> None:
    built = scenes.build(out=tmp_path, n=150, seed=3, pairs="texture", resolution=32)
    assert built.name == "scenes-pairs-texture" and built.group == "pair" and built.shared_groups == ()
    pairs: dict[str, list[tuple[str, str, dict[str, Any], np.ndarray]]] = defaultdict(list)
    for key, (split, record, files) in rows(built).items():
        image = np.array(Image.open(io.BytesIO(files["png"])))
        pairs[record["attributes"]["pair"]].append((key, split, record, image))
    assert 100 < len(pairs) < 150
    for pair, ((key, split, base, first), (other, other_split, changed, second)) in pairs.items():
        assert key == pair and other == f"{pair}-texture-{changed['attributes']['texture']}" and split == other_split
        differ = {name for name, value in base["attributes"].items() if changed["attributes"][name] != value}
        assert differ == {"texture", "pair_side"} and base["attributes"]["pair_side"] == "base"
        assert base["scene"] == changed["scene"]
        assert first.shape == (32, 32, 3) and (first != second).any()
    assert set(built.splits()) <= {"train", "val", "test"}


def test_the_permuted_world_has_another_name_and_other_textures(built: ShardSet, tmp_path: Path) -> None:
    other = scenes.build(out=tmp_path, n=60, seed=3, world="permuted")
    assert other.name == "scenes-permuted"
    textures = [
        [found[f"{world}-3-{index:08d}"][1]["attributes"]["texture"] for index in range(60)]
        for world, found in (("planted", rows(built)), ("permuted", rows(other)))
    ]
    assert textures[0] != textures[1]


@pytest.mark.parametrize(
    ("arguments", "error", "fact"),
    [
        ({"n": 0}, ConfigError, "--n 0"),
        ({"n": 5, "samples_per_shard": 1}, ConfigError, "--samples-per-shard 1"),
        ({"n": 5, "resolution": 128}, ConfigError, "--resolution 128"),
        ({"n": 5, "seed": -2}, ConfigError, "-2"),
        ({"n": 5, "world": "other"}, UnknownName, "other"),
        ({"n": 5, "pairs": "shoe"}, UnknownName, "shoe"),
        ({"n": 5, "spec": Path("missing.yaml")}, ConfigError, "missing.yaml"),
    ],
)
def test_wrong_arguments_write_nothing(
    arguments: dict[str, Any], error: type[DiffprobeError], fact: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=fact):
        scenes.build(out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_shards_is_refused(built: ShardSet) -> None:
    with pytest.raises(ShardError, match="train-0000.tar"):
        scenes.build(out=built.root, n=10)


def test_another_world_is_drawn(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(SHIPPED.read_text("utf-8").replace("  cook:", "  chef:"))
    built = scenes.build(out=tmp_path / "out", n=30, spec=file)
    assert "chef" in built.classes and "cook" not in built.classes


def test_the_command_builds_verifies_and_adopts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "set")
    assert main(["data", "build", "scenes", "--n", "40", "--seed", "1", "--world", "permuted", "--out", out]) == 0
    printed = capsys.readouterr()
    assert "scenes-permuted" in printed.out and "version 1" in printed.err
    assert main(["data", "verify", out]) == 0
    assert "40 valid samples, 0 faults" in capsys.readouterr().out
    assert main(["data", "adopt", out, "--out", str(tmp_path / "index.json")]) == 0
    assert "png" in capsys.readouterr().out
    assert main(["data", "build", "scenes", "--n", "0", "--out", out]) == 2
    assert "--n 0" in capsys.readouterr().err
