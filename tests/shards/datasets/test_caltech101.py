"""Caltech-101: as many images of each class for training as asked, drawn by seed."""

from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError, ShardError
from diffprobe.shards.datasets.caltech101 import BACKGROUND, build, tiny
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import read_shard


def keys(built: ShardSet, split: str) -> set[str]:
    return {raw.key for shard in built.shards_of(split) for raw in read_shard(built.root / shard.file)}


def test_splits_by_class_and_seed(tmp_path: Path) -> None:
    arguments, _ = tiny(tmp_path)
    first = build(**arguments, out=tmp_path / "a")  # type: ignore[arg-type]
    assert first.classes == ("Faces_easy", "accordion")
    assert [first.n_samples(split) for split in ("train", "val", "test")] == [8, 2, 6]
    other = build(**{**arguments, "seed": 1}, out=tmp_path / "b")  # type: ignore[arg-type]
    assert keys(other, "test") != keys(first, "test")
    more = {**arguments, "background": True, "test_per_class": 2, "name": None}
    third = build(**more, out=tmp_path / "c")  # type: ignore[arg-type]
    assert BACKGROUND in third.classes and third.n_samples("test") == 6 and "background" in third.name


def test_wrong_numbers_are_refused(tmp_path: Path) -> None:
    arguments, _ = tiny(tmp_path)
    with pytest.raises(ShardError, match="has 8 images; with 8 for training none(?s:.*)--train-per-class 7"):
        build(**{**arguments, "train_per_class": 8}, out=tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--train-per-class 0"):
        build(**{**arguments, "train_per_class": 0}, out=tmp_path / "a")  # type: ignore[arg-type]
    with pytest.raises(ShardError, match="16 images of 2 classes, expected 8,677 of 101"):
        build(**{**arguments, "subset": False}, out=tmp_path / "a")  # type: ignore[arg-type]
