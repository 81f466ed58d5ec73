"""Checkpoints of several files: whole or not there, and only for the processes that wrote them."""

import importlib.util
from pathlib import Path

import pytest
import torch

from diffprobe.core.errors import ConfigError, RunFailed, SchemaError
from diffprobe.probes.sae.latent_shards import LatentShards
from diffprobe.training import checkpoint_shards
from diffprobe.training.checkpoint import LAST, forget
from diffprobe.training.checkpoint_file import CheckpointFile, read_checkpoint
from diffprobe.training.checkpoint_shards import ShardedCheckpoint, files_of

_spec = importlib.util.spec_from_file_location("shard_threads", Path(__file__).parents[1] / "shard_threads.py")
threads = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(threads)


def checkpoint(rank, step):
    own = {"state_dict": {"w": torch.full((2,), rank + 10.0 * step)}, "optimizer_states": [{"rank": rank}]}
    return {**own, "loops": {"step": step}, "lr_schedulers": [], "global_step": step}


def save(path, step, writers):
    threads.in_threads(
        2, lambda shards: writers[shards.rank].save(checkpoint(shards.rank, step), path, shards, CheckpointFile())
    )


def load(path, rank, size=2):
    return ShardedCheckpoint().load(read_checkpoint(path), path, LatentShards(rank, size))


@pytest.fixture
def path(tmp_path):
    return tmp_path / LAST


@pytest.fixture
def writers():
    return [ShardedCheckpoint(), ShardedCheckpoint()]


def names(path):
    return sorted(found.name for found in path.parent.iterdir())


def test_each_process_gets_back_its_own_part_and_the_files_before_are_removed(path, writers):
    save(path, 1, writers)
    save(path, 2, writers)
    assert names(path) == ["last.ckpt", "last.latents-0-of-2.2.ckpt", "last.latents-1-of-2.2.ckpt"]
    for rank in range(2):
        found, expected = load(path, rank), checkpoint(rank, 2)
        assert found["state_dict"]["w"].equal(expected["state_dict"]["w"]) and found["loops"] == {"step": 2}
        assert found["optimizer_states"] == [{"rank": rank}]
    assert not read_checkpoint(path)["state_dict"]  # the main process's part is in a file of its own


def test_a_process_that_cannot_write_ends_all_and_the_checkpoint_before_stays(path, writers, monkeypatch):
    save(path, 1, writers)
    before, write = names(path), checkpoint_shards.write_checkpoint

    def full(content, to):
        if "latents-1-of-2" in str(to):
            raise RunFailed(f"the checkpoint '{to}' cannot be written: no space left on device.")
        return write(content, to)

    monkeypatch.setattr(checkpoint_shards, "write_checkpoint", full)
    complaints = []

    def attempt(shards):
        with pytest.raises(RunFailed, match="no space left") as caught:
            writers[shards.rank].save(checkpoint(shards.rank, 2), path, shards, CheckpointFile())
        complaints.append(str(caught.value))

    threads.in_threads(2, attempt)
    assert len(complaints) == 2 and names(path) == before
    assert load(path, 1)["loops"] == {"step": 1}


def test_a_kill_between_the_parts_and_the_file_that_names_them_leaves_the_one_before(path, writers):
    save(path, 1, writers)

    class Killed(CheckpointFile):
        def save_checkpoint(self, *args, **options):
            raise KeyboardInterrupt

    def attempt(shards):
        try:
            writers[shards.rank].save(checkpoint(shards.rank, 2), path, shards, Killed())
        except KeyboardInterrupt:
            pass

    threads.in_threads(2, attempt)
    assert [load(path, rank)["state_dict"]["w"][0].item() for rank in range(2)] == [10.0, 11.0]


def test_a_run_that_goes_on_numbers_its_files_on(path, writers):
    save(path, 1, writers)
    again = [ShardedCheckpoint(), ShardedCheckpoint()]
    for rank, writer in enumerate(again):
        writer.load(read_checkpoint(path), path, LatentShards(rank, 2))
    save(path, 2, again)
    assert "last.latents-0-of-2.2.ckpt" in names(path) and load(path, 0)["loops"] == {"step": 2}


def test_another_number_of_processes_and_a_whole_autoencoder_are_refused(path, writers):
    save(path, 1, writers)
    with pytest.raises(ConfigError, match=r"2 processes(.|\n)*this run has 3(.|\n)*fix:.*= 2"):
        load(path, 0, size=3)
    CheckpointFile().save_checkpoint(checkpoint(0, 1), path)
    with pytest.raises(ConfigError, match=r"whole autoencoder(.|\n)*trainer.strategy"):
        load(path, 0)


def test_a_missing_a_damaged_and_a_foreign_part_are_refused(path, writers):
    save(path, 1, writers)
    part = path.with_name("last.latents-1-of-2.1.ckpt")
    content = part.read_bytes()
    part.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    with pytest.raises(SchemaError, match=r"damaged(.|\n)*trainer.resume=false"):
        load(path, 1)
    part.write_bytes(path.with_name("last.latents-0-of-2.1.ckpt").read_bytes())
    with pytest.raises(SchemaError, match="not the file that the checkpoint"):
        load(path, 1)
    part.unlink()
    with pytest.raises(SchemaError, match=r"not whole(.|\n)*last.latents-1-of-2.1.ckpt"):
        load(path, 1)


def test_a_run_that_starts_anew_removes_all_of_them(path, writers):
    save(path, 1, writers)
    forget(path.parent)
    assert names(path) == [] and files_of(path) == "last.latents-*.ckpt"
