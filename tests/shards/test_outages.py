"""Shards whose storage vanishes for a while: the same samples as without it, or a stop that names what to do."""

import errno
import gzip
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffprobe.core import digest
from diffprobe.core.errors import ShardError
from diffprobe.core.patience import Patience
from diffprobe.shards import reader
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.stream import SampleStream, make_loader

Make = Callable[..., ShardSet]


class Weak(io.BufferedReader):
    """A file that fails, or ends, at a place."""

    def __init__(self, path: Path, place: int, error: OSError | None) -> None:
        super().__init__(io.FileIO(path))
        self._place, self._error = place, error

    def read(self, size: int | None = -1, /) -> bytes:
        left = self._place - self.tell()
        if size is None or size < 0 or size > left:
            if self._error is not None:
                raise self._error
            size = max(left, 0)
        return super().read(size)


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[tuple[int, OSError | None]]], list]:
    """Return a function that makes the next openings of shards fail: at a byte, with an error or a short read."""
    opened = reader.open_shard

    def make(faults: list[tuple[int, OSError | None]]) -> list:
        left = list(faults)

        def weak(path: Path) -> io.BufferedReader:
            if not left:
                return opened(path)
            place, error = left.pop(0)
            if place < 0:
                raise error
            return Weak(path, place, error)

        monkeypatch.setattr(reader, "open_shard", weak)
        return left

    return make


def patient(shard_set: ShardSet, seconds: float = 100.0, waits: list[float] | None = None) -> ShardSet:
    """Give a set the patience, on a clock that only its waits move."""
    found = [] if waits is None else waits
    return replace(shard_set, patience=Patience(seconds=seconds, clock=lambda: sum(found), sleep=found.append))


def keys(shard_set: ShardSet) -> Iterator[str]:
    for sample in SampleStream(shard_set, "train", verify=False):
        yield sample.key


def stale(number: int = errno.ESTALE) -> OSError:
    return OSError(number, os.strerror(number))


FAULTS = {
    "at its opening": [(-1, FileNotFoundError(errno.ENOENT, "gone"))] * 3,
    "in its first header": [(100, stale())],
    "in the middle, again and again": [(12000, stale(errno.EIO)), (100, stale(errno.ENOTCONN)), (22000, stale())],
    "a short read": [(11000, None), (0, None), (21000, None)],
    "in the second shard": [(10**9, None), (12000, stale(errno.ETIMEDOUT))],
}


@pytest.mark.parametrize("packed", [False, True], ids=["tar", "gzip"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_reading_goes_on_at_the_same_sample(
    make_set: Make, fail, faults: list[tuple[int, OSError | None]], packed: bool, tmp_path: Path
) -> None:
    shard_set = make_set(14, 9)
    if packed:
        for path in tmp_path.glob("*.tar"):
            path.write_bytes(gzip.compress(path.read_bytes(), 0, mtime=0))
        shard_set = build_index(tmp_path, name="tiny", licence="CC0")
    plain = list(keys(shard_set))
    waits: list[float] = []
    left = fail(list(faults))
    assert list(keys(patient(shard_set, waits=waits))) == plain == [f"k{i:03d}" for i in range(23)]
    assert not left and len(waits) >= len([fault for fault in faults if fault[0] < 10**9])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_training_stream_is_the_same(make_set: Make, fail, workers: int) -> None:
    shard_set = make_set(14, 9)

    def batches(found: ShardSet) -> list:
        stream = SampleStream(found, "train", shuffle_buffer=3, seed=1, equal=True)
        return [(batch.keys, batch.images) for batch in make_loader(stream, 2, workers)]

    plain = batches(shard_set)
    left = fail([(12000, stale()), (11000, None)])
    found = batches(patient(shard_set))
    assert [one for one, _ in found] == [one for one, _ in plain]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(found, plain, strict=True))
    assert workers or not left


@pytest.mark.parametrize("workers", [0, 1])
def test_the_end_of_the_patience_names_file_error_time_and_what_to_do(
    make_set: Make, fail, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    shard_set = make_set(14, 9)
    waits: list[float] = []
    fail([(12000, stale())] * 1000)
    loader = make_loader(SampleStream(patient(shard_set, 60, waits), "train", verify=False), 2, workers)
    with caplog.at_level(logging.WARNING), pytest.raises(ShardError, match="train-0000.tar") as caught:
        list(loader)
    text = str(caught.value)
    assert "ESTALE" in text and "60 s (" in text and "data.storage_patience" in text
    assert str(shard_set.root / "train-0000.tar") in text and "the same command" in text
    if not workers:
        assert sum(waits) == 60
        (line,) = [record.message for record in caplog.records]
        assert line.startswith("shard train-0000.tar: ESTALE") and "trying again for 60 s more" in line


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "denied"), IsADirectoryError(errno.EISDIR, "folder")])
def test_a_refused_permission_is_not_tried_again(make_set: Make, fail, error: OSError) -> None:
    waits: list[float] = []
    shard_set = patient(make_set(4), waits=waits)
    fail([(-1, error)])
    with pytest.raises(ShardError, match=type(error).__name__):
        list(keys(shard_set))
    assert not waits


def test_what_is_damaged_is_not_tried_again(make_set: Make) -> None:
    waits: list[float] = []
    shard_set = patient(make_set(4), waits=waits)
    path = shard_set.root / "train-0000.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:512] + b"\xff" * 512 + whole[1024:])
    with pytest.raises(ShardError, match="has changed since it was indexed"):
        shard_set.check(path.name)
    path.write_bytes(b"\xff" * 512 + whole[512:])
    with pytest.raises(ShardError, match="cannot read the shard"):
        list(keys(shard_set))
    assert not waits


def test_a_shard_that_was_never_there_is_not_waited_for(make_set: Make) -> None:
    shard_set = make_set(4, 5)
    (shard_set.root / "train-0001.tar").unlink()
    with pytest.raises(ShardError, match="missing: train-0001.tar"):
        ShardSet.load(shard_set.root, storage_patience=1e9)


def test_another_shard_in_the_place_of_the_vanished_one_is_refused(make_set: Make, fail) -> None:
    shard_set = make_set(14, 14)

    def swap(seconds: float) -> None:
        first, second = shard_set.root / "train-0000.tar", shard_set.root / "train-0001.tar"
        first.write_bytes(second.read_bytes()[: first.stat().st_size])

    fail([(12000, stale())])
    found = replace(shard_set, patience=Patience(seconds=9, clock=lambda: 0.0, sleep=swap))
    with pytest.raises(ShardError, match=r"train-0000.tar: .*'k\d+' where 'k\d+' was"):
        list(keys(found))


def test_checksums_wait_for_the_storage_and_a_short_one_is_not_kept(
    make_set: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_set = make_set(4)
    path = shard_set.root / "train-0000.tar"
    away = path.rename(path.with_suffix(".away"))
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            away.rename(path)

    found = replace(shard_set, patience=Patience(seconds=90, clock=lambda: sum(waits), sleep=sleep))
    found.check(path.name)
    assert len(waits) == 3
    path.rename(away)
    with pytest.raises(ShardError, match="did not come back within 90 s"):
        replace(found, patience=Patience(seconds=90, clock=lambda: sum(waits), sleep=waits.append)).check(path.name)


def test_a_digest_of_a_file_that_ends_early_is_an_error_of_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 1000)
    monkeypatch.setattr(digest.hashlib, "file_digest", lambda file, name: hashlib.sha256(file.read(400)))
    with pytest.raises(OSError, match="byte 400 of 1,000"):
        digest.digest_file(path)
