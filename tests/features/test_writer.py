"""Shard folders appear complete or not at all, with equal bytes from any process."""

import os
import resource
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.core.errors import NonFinite, RunFailed, StoreMismatch
from diffprobe.features.writer import StoreWriter, shard_folder


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_bytes_do_not_depend_on_the_batch_size(tmp_path, manifest, fill, file_bytes, batch_size):
    whole = fill(tmp_path / "a", manifest, batch_size=3)
    other = fill(tmp_path / "b", manifest, batch_size=batch_size)
    assert file_bytes(whole.path) == file_bytes(other.path)


def test_feature_files_are_ordinary_safetensors(tmp_path, manifest, fill, toy_batches):
    store = fill(tmp_path, manifest)
    shard = manifest.shards[1]
    loaded = load_file(store.path / shard.file / "mid_block@t10.empty.mean.safetensors")
    expected = torch.cat([b.batch.features["mid_block@t10:empty:mean"] for b in toy_batches(manifest, shard)])
    assert list(loaded) == ["features"]
    assert torch.equal(loaded["features"], expected)


def test_feature_maps_keep_their_shape(tmp_path, changed_manifest, toy_batches):
    manifest = changed_manifest(cells={"mid_block@t10:empty:none": 6})
    writer = StoreWriter(tmp_path, manifest)
    shard = manifest.shards[0]

    def maps():
        for item in toy_batches(manifest, shard):
            item.batch.features = {cell: v.reshape(-1, 2, 3, 1) for cell, v in item.batch.features.items()}
            yield item

    writer.write(shard, maps())
    loaded = load_file(writer.path / shard.file / "mid_block@t10.empty.none.safetensors")["features"]
    assert loaded.shape == (7, 2, 3, 1)


def test_parts_together_give_the_bytes_of_the_whole(tmp_path, manifest, fill, file_bytes):
    whole = fill(tmp_path / "whole", manifest)
    fill(tmp_path / "parts", manifest, process=(1, 2))
    parts = fill(tmp_path / "parts", manifest, process=(0, 2))
    assert file_bytes(whole.path) == file_bytes(parts.path)


def test_a_failure_in_the_middle_leaves_no_shard_behind(tmp_path, manifest, toy_batches):
    writer = StoreWriter(tmp_path, manifest)
    shard = manifest.shards[0]

    def broken():
        yield next(toy_batches(manifest, shard))
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        writer.write(shard, broken())
    assert not writer.has(shard)
    assert [path.name for path in writer.path.iterdir()] == ["manifest.json"]
    assert shard in writer.pending()


WRITING = """
import sys, time
from pathlib import Path
from diffprobe.core.claim import claim
with claim(Path(sys.argv[1]), ".writing-") as name:
    (Path(sys.argv[1]) / name).mkdir()
    print(name, flush=True)
    time.sleep(60)
"""


def start_writing(folder):
    """Start a process that writes below a folder, and return it with its temporary folder."""
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(folder)], stdout=subprocess.PIPE, text=True)
    return process, folder / process.stdout.readline().strip()


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path, manifest, toy_batches):
    writer = StoreWriter(tmp_path, manifest)
    (first, dead), (second, alive) = (start_writing(writer.path) for _ in range(2))
    first.kill()
    first.wait()
    assert dead.is_dir() and alive.is_dir()
    again = StoreWriter(tmp_path, manifest)
    assert not dead.exists() and alive.is_dir()
    for shard in manifest.shards:
        again.write(shard, toy_batches(manifest, shard))
    assert alive.is_dir()
    second.kill()
    second.wait()
    again.finish()
    assert not [path for path in writer.path.iterdir() if path.name.startswith(".writing-")]


def test_processes_of_equal_host_name_and_number_do_not_disturb_each_other(
    tmp_path, manifest, toy_batches, fill, file_bytes, monkeypatch
):
    """As in containers that share a host name, each with a process 1."""
    monkeypatch.setattr("os.getpid", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: "node")
    shard = manifest.shards[0]

    def disturbed():
        batches = toy_batches(manifest, shard)
        yield next(batches)
        StoreWriter(tmp_path, manifest)  # another process starts, and looks for leftovers of "its own"
        yield from batches

    writer = StoreWriter(tmp_path, manifest)
    writer.write(shard, disturbed())
    assert writer.has(shard)
    fill(tmp_path, manifest)
    assert file_bytes(writer.path) == file_bytes(fill(tmp_path / "alone", manifest).path)


def test_finish_sweeps_only_a_complete_store(tmp_path, manifest, toy_batches):
    writer = StoreWriter(tmp_path, manifest)
    leftover = writer.path / ".writing-elsewhere-1-train-0000.tar"
    leftover.mkdir()
    stale = writer.path / ".manifest.json.abc.tmp"
    stale.write_text("half")
    for shard in manifest.shards:
        assert not writer.finish()
        assert leftover.exists()
        writer.write(shard, toy_batches(manifest, shard))
    assert writer.finish()
    assert not leftover.exists() and not stale.exists()


def test_a_second_process_with_the_same_part_does_no_harm(tmp_path, manifest, fill, toy_batches, file_bytes):
    store = fill(tmp_path, manifest)
    before = file_bytes(store.path)
    StoreWriter(tmp_path, manifest).write(manifest.shards[0], toy_batches(manifest, manifest.shards[0]))
    assert file_bytes(store.path) == before


def test_a_process_whose_twin_was_faster_and_swept_up_goes_on(tmp_path, manifest, fill, toy_batches, file_bytes):
    slow = StoreWriter(tmp_path, manifest)
    shard = manifest.shards[0]

    def overtaken():
        batches = toy_batches(manifest, shard)
        yield next(batches)
        fill(tmp_path, manifest)  # completes the store, and removes what looks left behind
        yield from batches

    slow.write(shard, overtaken())
    assert file_bytes(slow.path) == file_bytes(fill(tmp_path / "alone", manifest).path)


def test_nan_is_refused_with_cell_shard_and_key(tmp_path, manifest, toy_batches):
    writer = StoreWriter(tmp_path, manifest)
    batches = list(toy_batches(manifest, manifest.shards[0]))
    batches[1].batch.features["up_blocks.0@t10:empty:mean"][2, 1] = float("nan")
    with pytest.raises(NonFinite, match="cell 'up_blocks.0@t10:empty:mean' of shard 'train-0000.tar'") as caught:
        writer.write(manifest.shards[0], iter(batches))
    assert "first: 'train-0000.tar/5'" in str(caught.value)


def test_samples_that_are_neither_there_nor_left_out_are_noticed(tmp_path, manifest, toy_batches):
    writer = StoreWriter(tmp_path, manifest)
    shard = manifest.shards[0]
    with pytest.raises(RunFailed, match="6 samples, 0 left out, expected 7"):
        writer.write(shard, list(toy_batches(manifest, shard))[:2])
    left_out = {f"{shard.file}/6": "cut off"}
    writer.write(shard, list(toy_batches(manifest, shard))[:2], left_out=left_out)
    loaded = load_file(writer.path / shard.file / "mid_block@t10.empty.mean.safetensors")["features"]
    assert loaded.shape == (6, 3)


def test_a_shard_without_any_sample_is_refused(tmp_path, manifest):
    with pytest.raises(RunFailed, match="no valid sample"):
        StoreWriter(tmp_path, manifest).write(manifest.shards[0], [])


def test_a_folder_with_another_manifest_is_not_written_to(tmp_path, manifest, changed_manifest):
    other = changed_manifest(dtype="float16")
    other.write(tmp_path / manifest.folder / "manifest.json")
    with pytest.raises(StoreMismatch, match="manifest of another store"):
        StoreWriter(tmp_path, manifest)


@pytest.fixture
def few_files():
    """Let the process open 40 files more than it has open: the limit is one of the highest number a file may get."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(40)]
    for number in taken:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_there_may_be_more_cells_than_files_by_habit(tmp_path, changed_manifest, fill, few_files):
    store = fill(tmp_path, changed_manifest(cells={f"mid_block@t{t}:empty:mean": 2 for t in range(60)}))
    assert len(store.load("val").features) == 60


def test_more_cells_than_the_process_can_open_are_refused(tmp_path, manifest, monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (100, 200))
    with pytest.raises(RunFailed, match=r"2 cells .* can open 200 files") as caught:
        StoreWriter(tmp_path, manifest)
    assert "ulimit -Hn 258" in str(caught.value) and not list(tmp_path.iterdir())


def test_shards_of_different_folders_never_meet():
    assert shard_folder("a/b.tar") != shard_folder("a_b.tar")
    assert "/" not in shard_folder("a/b.tar")
