"""Equal samples give equal bytes, and what is written is what is read."""

import gzip
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.core.errors import DuplicateKey, SampleError, ShardError
from diffprobe.shards.reader import read_shard
from diffprobe.shards.writer import write_shard, write_shards

SAMPLES = [("cup/2", {"png": b"x" * 700, "json": b"{}"}), ("cup/1", {"json": b"[]"})]

names = st.text(
    st.characters(codec="utf-8", exclude_characters="./\0", exclude_categories=("Cs",)), min_size=1, max_size=8
)
keys = st.lists(names, min_size=1, max_size=3).map("/".join).filter(lambda key: not key.startswith("__"))
fields = st.dictionaries(st.sampled_from(["png", "json", "txt", "seg.png"]), st.binary(max_size=600), min_size=1)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
def test_bytes_depend_on_the_samples_alone(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / f"a-0{suffix}", tmp_path / f"b-1{suffix}"
    assert write_shard(first, SAMPLES) == 2
    monkeypatch.setattr("time.time", lambda: 2e9)  # another day
    write_shard(second, [(key, dict(reversed(fields.items()))) for key, fields in SAMPLES])
    assert first.read_bytes() == second.read_bytes()


def test_headers_hold_no_time_and_no_owner(tmp_path: Path) -> None:
    write_shard(tmp_path / "a-0.tar.gz", SAMPLES)
    with tarfile.open(tmp_path / "a-0.tar.gz") as tar:
        assert [member.name for member in tar] == ["cup/2.json", "cup/2.png", "cup/1.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}
    assert gzip.decompress((tmp_path / "a-0.tar.gz").read_bytes())
    assert (tmp_path / "a-0.tar.gz").read_bytes()[3:8] == bytes(5)  # flags (no file name) and time


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(keys, fields), unique_by=lambda sample: sample[0], max_size=6),
    st.sampled_from([".tar", ".tar.gz"]),
)
def test_writing_then_reading_is_the_identity(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, dict[str, bytes]]], suffix: str
) -> None:
    path = tmp_path_factory.mktemp("identity") / f"a-0{suffix}"
    assert write_shard(path, samples) == len(samples)
    read = list(read_shard(path))
    assert [(raw.key, raw.files) for raw in read] == samples
    assert [raw.position for raw in read] == list(range(len(samples)))


def test_a_failure_leaves_the_old_shard_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a-0.tar"
    write_shard(path, SAMPLES)
    before = path.read_bytes()
    with pytest.raises(DuplicateKey, match=r"a-0.tar: key 'cup/2' occurs twice"):
        write_shard(path, SAMPLES + SAMPLES[:1])
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a-0.tar"]


@pytest.mark.parametrize("key", ["", "a.b", "/a", "a/", "__meta__", "x/.hidden", "caf\udce9"])
def test_keys_that_webdataset_reads_differently_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(SampleError, match="not a valid key"):
        write_shard(tmp_path / "a-0.tar", [(key, {"png": b""})])


@pytest.mark.parametrize("extension", ["", "PNG", "a/b", ".png"])
def test_bad_extensions_are_refused(tmp_path: Path, extension: str) -> None:
    with pytest.raises(SampleError, match="sample 'k' has the extension"):
        write_shard(tmp_path / "a-0.tar", [("k", {extension: b""})])


def test_other_suffixes_and_empty_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"'a.zip'"):
        write_shard(tmp_path / "a.zip", SAMPLES)
    with pytest.raises(SampleError, match="'k' has no field"):
        write_shard(tmp_path / "a-0.tar", [("k", {})])


def test_write_shards_cuts_a_split(tmp_path: Path) -> None:
    samples = [(f"k{i}", {"txt": b"t"}) for i in range(5)]
    paths = write_shards(iter(samples), tmp_path, "train", samples_per_shard=2, compress=True)
    assert [path.name for path in paths] == ["train-0000.tar.gz", "train-0001.tar.gz", "train-0002.tar.gz"]
    assert [[raw.key for raw in read_shard(path)] for path in paths] == [["k0", "k1"], ["k2", "k3"], ["k4"]]
    with pytest.raises(ShardError, match="shards of split 'train'"):
        write_shards(samples, tmp_path, "train")


def test_write_shards_sees_keys_of_earlier_shards(tmp_path: Path) -> None:
    samples = [("a", {"txt": b""}), ("b", {"txt": b""}), ("a", {"txt": b""})]
    with pytest.raises(DuplicateKey, match=r"val-0001.tar: key 'a' was already written"):
        write_shards(samples, tmp_path, "val", samples_per_shard=2)
    with pytest.raises(ShardError, match="no sample to write"):
        write_shards([], tmp_path, "test")
    with pytest.raises(ShardError, match="samples_per_shard=0"):
        write_shards(samples, tmp_path, "test", samples_per_shard=0)
