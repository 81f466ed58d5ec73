"""ImageNet: a tar of tars and class folders give the same labels; two classes of one name are numbered."""

import json
from pathlib import Path

import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.shards.datasets.imagenet import build, tiny
from diffprobe.shards.reader import read_shard
from diffprobe.shards.tiny_archive import tiny_image


def test_tars_and_class_folders(tmp_path: Path) -> None:
    arguments, _ = tiny(tmp_path)
    built = build(**arguments, out=tmp_path / "a")  # type: ignore[arg-type]
    assert built.classes == ("crane (0)", "crane (1)")
    assert [built.n_samples(split) for split in ("train", "val", "test")] == [8, 2, 4]
    test = [raw for shard in built.shards_of("test") for raw in read_shard(built.root / shard.file)]
    labels = {raw.key[-1]: json.loads(raw.files["json"])["label"] for raw in test}
    assert labels == {"1": 0, "2": 1, "3": 1, "4": 0}  # numbers 2, 1, 1, 2 of the devkit; 2 is n02012849
    with pytest.raises(ConfigError, match="labels are needed(?s:.*)--devkit"):
        build(**{**arguments, "devkit": None}, out=tmp_path / "b")  # type: ignore[arg-type]
    for number in range(8):
        path = tmp_path / ("train", "val")[number // 6] / ("n02012849", "n03126707")[number % 2] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiny_image(number))
    folders = build(tmp_path / "train", tmp_path / "val", out=tmp_path / "c", val=0, subset=True)
    assert folders.classes == ("n02012849", "n03126707") and folders.n_samples("test") == 2
