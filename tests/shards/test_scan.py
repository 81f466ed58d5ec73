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
    with pytest.raises(ShardError, match=r"'train.tar'.*split"):
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
    assert scan.all_faults() == scan.faults == ["train-0000.tar: member 'README' belongs to no sample (no extension)."]


def test_a_sample_that_alone_lacks_its_annotation_is_a_fault(tmp_path: Path) -> None:
    def scanned(*shards: dict[str, bytes]) -> list[str]:
        scan = Scan(Fields(json="meta.json"))
        for number, members in enumerate(shards):
            path = tmp_path / f"train-{number:04d}.tar"
            with tarfile.open(path, "w") as tar:
                for name, data in members.items():
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
            scan.shard(path)
        return scan.all_faults()

    bare = {"a.png": b"", "b.png": b"", "b.json": b"{}"}
    assert scanned(bare) == []
    assert scanned({**bare, "c.png": b"", "c.meta.json": b"{}"}, {"d.png": b"", "d.cls": b"0"}) == [
        f"train-0000.tar, sample '{key}': no annotation (meta.json), while other samples have one." for key in "ab"
    ]
    assert scanned({"a.png": b"", "a.txt": b"a cat"}, {"b.png": b"", "b.cls": b"0"}) == []
