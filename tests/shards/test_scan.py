"""Names of shards, and members that belong to no sample."""

import io
import tarfile
from pathlib import Path

import pytest

from diffprobe.core.errors import ShardError
from diffprobe.shards.annotation import Fields
from diffprobe.shards.scan import Scan, find_shards, split_of


def test_the_split_is_all_before_the_last_dash() -> None:
    assert split_of(Path("x/val-0.tar.gz")) == "val"
    assert split_of(Path("test-hard-0012.tar")) == "test-hard"
    with pytest.raises(ShardError, match=r"'train.tar' gives no split"):
        split_of(Path("train.tar"))


def test_hidden_and_other_files_are_no_shards(tmp_path: Path) -> None:
    for name in (".train-0000.tar", "train-0001.tar", "train-0000.tar.gz", "classes.json"):
        (tmp_path / name).touch()
    assert [path.name for path in find_shards(tmp_path)] == ["train-0000.tar.gz", "train-0001.tar"]


def test_members_of_no_sample_are_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "train-0000.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("README", "k.png"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    scan = Scan(Fields())
    assert scan.shard(path) == 1
    assert scan.faults == ["train-0000.tar: member 'README' belongs to no sample (it has no extension)."]
