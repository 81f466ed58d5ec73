"""A checkpoint on the disk is whole or named: written in one step, with a checksum, without pickle."""

import errno
import os
import zipfile

import pytest
import torch

from diffprobe.core.errors import RunFailed, SchemaError
from diffprobe.training.checkpoint_file import CheckpointFile, read_checkpoint, verify_checkpoint, write_checkpoint

CONTENT = {"state_dict": {"weight": torch.arange(500.0)}, "loops": {}, "optimizer_states": [], "lr_schedulers": []}


@pytest.fixture
def path(tmp_path):
    write_checkpoint(CONTENT, tmp_path / "run" / "last.ckpt")
    return tmp_path / "run" / "last.ckpt"


def test_what_was_written_comes_back_also_by_torch_itself(path):
    for found in (read_checkpoint(path), CheckpointFile().load_checkpoint(path), torch.load(path, weights_only=True)):
        assert found.keys() == CONTENT.keys() and found["state_dict"]["weight"].equal(CONTENT["state_dict"]["weight"])
    with zipfile.ZipFile(path) as archive:
        assert b"sha256" in archive.comment and archive.testzip() is None
    assert [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_every_truncation_and_every_flipped_byte_is_named(path):
    whole = path.read_bytes()
    cuts = [whole[:n] for n in (0, 1, 100, len(whole) // 2, len(whole) - 200, len(whole) - 1)]
    flips = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole) - 120, 97)]
    flips += [whole[:-1] + b"?", b"\0" * len(whole)]
    for data in (*cuts, *flips):
        path.write_bytes(data)
        with pytest.raises(SchemaError, match=r"last.ckpt'(.|\n)*fix: trainer.resume=false"):
            verify_checkpoint(path)
    assert len(flips) > 20


def test_other_content_with_a_right_checksum_is_named(path):
    write_checkpoint({"weights": torch.zeros(1)}, path)
    with pytest.raises(SchemaError, match=r"not that of a training run(.|\n)*state_dict"):
        read_checkpoint(path)
    write_checkpoint({**CONTENT, "payload": print}, path)
    with pytest.raises(SchemaError, match="cannot be read: Weights only load failed"):
        read_checkpoint(path)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "last.ckpt")
    with pytest.raises(SchemaError, match="not a regular file"):
        read_checkpoint(tmp_path / "last.ckpt")


def test_a_full_disk_leaves_the_checkpoint_of_before(path, monkeypatch):
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="last.ckpt' cannot be written: No space left on device"):
        write_checkpoint(CONTENT, path)
    assert path.read_bytes() == before and [file.name for file in path.parent.iterdir()] == ["last.ckpt"]


def test_the_new_file_is_written_beside_the_old_one_and_flushed_before_it_is_renamed(path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(os.path.dirname(a)), replace(a, b))[1])
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    write_checkpoint(CONTENT, path)
    assert order == ["fsync", str(path.parent), "fsync"]
