"""Streams: exactly once, equal in training, repeatable, and faults that shift nothing."""

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch

from diffprobe.core.errors import ConfigError, SampleError, ShardError, UnknownName
from diffprobe.shards.index import ShardSet
from diffprobe.shards.partition import steps_per_epoch
from diffprobe.shards.stream import ImageLoader, SampleStream, make_loader

Make = Callable[..., ShardSet]


def keys_of(loader: ImageLoader) -> list[str]:
    return [key for batch in loader for key in batch.keys]


def loader_of(shard_set: ShardSet, *, batch_size: int = 2, num_workers: int = 0, **options: Any) -> ImageLoader:
    split = options.pop("split", "train")
    return make_loader(SampleStream(shard_set, split, **options), batch_size, num_workers)


@pytest.fixture
def shard_set(make_set: Make) -> ShardSet:
    return make_set(3, 1, 4, 5)


@pytest.mark.parametrize("num_workers", [0, 1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("sizes", [(3, 1, 4, 5), (7,)], ids=["many shards", "one shard"])
def test_each_sample_is_read_once(make_set: Make, sizes: tuple[int, ...], world_size: int, num_workers: int) -> None:
    shard_set = make_set(*sizes)
    seen: Counter[str] = Counter()
    for rank in range(world_size):
        loader = loader_of(shard_set, rank=rank, world_size=world_size, num_workers=num_workers)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(len(batch) == 2 for batch in batches[:-1] if num_workers < 2)
        for batch in batches:
            seen.update(batch.keys)
            torch.testing.assert_close(
                batch.images[:, 0, 0, 0] * 255, torch.tensor([float(key[1:]) for key in batch.keys])
            )
            assert batch.label.tolist() == [int(key[1:]) % 3 for key in batch.keys]
    assert seen == Counter(f"k{i:03d}" for i in range(sum(sizes)))


@pytest.mark.slow
def test_spawned_workers_read_each_sample_once(shard_set: ShardSet) -> None:
    seen: list[str] = []
    for rank in range(2):
        stream = SampleStream(shard_set, "train", rank=rank, world_size=2)
        seen += keys_of(make_loader(stream, 2, 2 if rank else 0, multiprocessing_context="spawn"))
    assert sorted(seen) == [f"k{i:03d}" for i in range(13)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_training_ranks_have_equal_batches(shard_set: ShardSet, world_size: int, num_workers: int) -> None:
    seen: Counter[str] = Counter()
    for rank in range(world_size):
        loader = loader_of(
            shard_set, rank=rank, world_size=world_size, shuffle_buffer=4, equal=True, num_workers=num_workers
        )
        batches = list(loader)
        assert len(batches) == len(loader) == steps_per_epoch(13, world_size, 2)
        seen.update(key for batch in batches for key in batch.keys)
    assert len(seen) == 13
    assert seen.total() == -(-13 // world_size) * world_size


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_order_follows_seed_and_epoch(shard_set: ShardSet, num_workers: int) -> None:
    def order(seed: int = 0, epoch: int = 0) -> list[str]:
        loader = loader_of(shard_set, shuffle_buffer=5, seed=seed, num_workers=num_workers)
        loader.set_epoch(epoch)
        return keys_of(loader)

    assert order() == order()
    assert sorted(order()) == sorted(order(epoch=1)) == sorted(order(seed=1))
    assert len({tuple(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_wrapped_samples_repeat_with_seed_and_epoch(shard_set: ShardSet) -> None:
    def twice(epoch: int) -> set[str]:
        seen: Counter[str] = Counter()
        for rank in range(3):
            seen.update(
                keys_of(loader_of(shard_set, rank=rank, world_size=3, shuffle_buffer=4, epoch=epoch, equal=True))
            )
        return {key for key, count in seen.items() if count == 2}

    assert twice(0) == twice(0)
    assert len(twice(0)) == len(twice(1)) == 2


def test_without_a_buffer_the_order_is_that_of_the_shards(shard_set: ShardSet) -> None:
    assert [sample.key for sample in SampleStream(shard_set, "train", epoch=3)] == [f"k{i:03d}" for i in range(13)]


def test_lightning_sets_the_epoch(shard_set: ShardSet) -> None:
    loader = loader_of(shard_set, shuffle_buffer=5)
    _set_sampler_epoch(loader, 3)
    assert loader.stream.epoch == 3
    assert keys_of(loader) == keys_of(loader_of(shard_set, shuffle_buffer=5, epoch=3))


def test_limit_and_subset(shard_set: ShardSet) -> None:
    assert keys_of(loader_of(shard_set, limit=5)) == [f"k{i:03d}" for i in range(5)]
    assert keys_of(loader_of(shard_set, shard_subset=["train-0001.tar"])) == ["k003"]
    assert keys_of(loader_of(shard_set, limit=5, shard_subset=["train-0002.tar"])) == ["k004"]
    with pytest.raises(UnknownName, match="unknown shard of split 'train' 'train-9.tar'"):
        loader_of(shard_set, shard_subset=["train-9.tar"])


def test_images_come_at_the_resolution_asked_for(shard_set: ShardSet) -> None:
    (batch,) = loader_of(shard_set, resolution=6, limit=1)
    assert batch.images.shape == (1, 3, 6, 6)
    assert batch.images.dtype == torch.float32


def broken(number: int, files: dict[str, bytes]) -> None:
    """Cut the image of sample 2 off, and leave sample 5 without one."""
    if number == 2:
        files["png"] = files["png"][:40]
    if number == 5:
        del files["png"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_faulty_sample_stops_the_run_by_name(make_set: Make, num_workers: int) -> None:
    shard_set = make_set(4, 4, change=broken, on_error="skip")
    with pytest.raises(SampleError, match=r"^train-0000.tar, sample 'k002': cannot decode image 'png'") as caught:
        keys_of(loader_of(shard_set, shard_subset=["train-0000.tar"], num_workers=num_workers))
    assert "fields: json, png" in str(caught.value)
    with pytest.raises(SampleError, match=r"^train-0001.tar, sample 'k005': no image"):
        keys_of(loader_of(shard_set, shard_subset=["train-0001.tar"], num_workers=num_workers))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skip_lists_what_it_leaves_out_and_shifts_nothing(
    make_set: Make, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    shard_set = make_set(4, 4, change=broken, on_error="skip")
    loader = loader_of(shard_set, num_workers=num_workers, on_error="skip", batch_size=3)
    with caplog.at_level(logging.WARNING):
        batches = list(loader)
    assert sorted(key for batch in batches for key in batch.keys) == ["k000", "k001", "k003", "k004", "k006", "k007"]
    for batch in batches:
        assert batch.label.tolist() == [int(key[1:]) % 3 for key in batch.keys]
        torch.testing.assert_close(batch.images[:, 0, 0, 0] * 255, torch.tensor([float(key[1:]) for key in batch.keys]))
        assert batch.captions == [f"number {int(key[1:])}" for key in batch.keys]
    assert sorted(loader.skipped) == ["k002", "k005"]
    assert "train-0000.tar, sample 'k002'" in loader.skipped["k002"]
    assert sum("left out" in record.message for record in caplog.records) == 2
    list(loader)
    assert sorted(loader.skipped) == ["k002", "k005"]  # of the last iteration, not summed up


@pytest.mark.parametrize("num_workers", [0, 2])
def test_equal_streams_stay_equal_when_they_skip(make_set: Make, num_workers: int) -> None:
    shard_set = make_set(4, 4, change=broken, on_error="skip")
    for rank in range(2):
        loader = loader_of(
            shard_set, rank=rank, world_size=2, equal=True, on_error="skip", shuffle_buffer=2, num_workers=num_workers
        )
        seen = keys_of(loader)
        assert len(seen) == 4
        assert not {"k002", "k005"} & set(seen)


def test_an_equal_stream_of_faults_alone_stops(make_set: Make) -> None:
    shard_set = make_set(2, change=lambda number, files: files.pop("png"), on_error="skip")
    with pytest.raises(ShardError, match="no valid sample") as caught:
        keys_of(loader_of(shard_set, equal=True, on_error="skip"))
    assert "sample 'k001'" in str(caught.value)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_a_shard_that_differs_from_the_index_stops_the_run(
    make_set: Make, files: Callable[..., dict[str, bytes]], on_error: str
) -> None:
    from diffprobe.shards.writer import write_shard

    shard_set = make_set(3)
    for count in (2, 4):
        write_shard(shard_set.root / "train-0000.tar", [(f"k{i:03d}", files(i)) for i in range(count)])
        with pytest.raises(ShardError, match=rf"train-0000.tar: the shard has {count} samples, the index 3"):
            keys_of(loader_of(shard_set, on_error=on_error, verify=False))
        with pytest.raises(ShardError, match="train-0000.tar: .*sha256"):
            loader_of(shard_set, on_error=on_error)


def test_a_shard_of_which_the_index_says_that_it_is_empty_must_be_empty(make_set: Make) -> None:
    shard_set = make_set(3)
    wrong = replace(shard_set, shards=tuple(replace(shard, n_samples=0) for shard in shard_set.shards))
    with pytest.raises(ShardError, match="the shard has some samples, the index 0"):
        loader_of(wrong, verify=False)


def test_a_changed_byte_is_noticed_when_a_stream_is_opened_though_size_and_time_are_the_same(make_set: Make) -> None:
    make_set(3)
    shard_set = make_set(3, split="val", prefix="v")
    path = shard_set.root / "train-0000.tar"
    time = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes().replace(b"number 1", b"number 9"))
    os.utime(path, ns=(time, time))
    loaded = ShardSet.load(shard_set.root)
    assert loaded.newer == ()
    with pytest.raises(ShardError, match="train-0000.tar: the shard has changed"):
        loader_of(loaded)
    assert len(keys_of(loader_of(loaded, split="val"))) == 3  # the other split is not affected


def test_a_shard_is_hashed_once_while_it_stays_the_same(make_set: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffprobe.core import digest

    shard_set, hashed = make_set(3, 3), []
    whole = digest.digest_file
    monkeypatch.setattr(digest, "digest_file", lambda path: hashed.append(path.name) or whole(path))
    for _ in range(3):
        loader_of(shard_set)
    assert hashed == ["train-0000.tar", "train-0001.tar"]
    loader_of(shard_set, verify=False)
    assert len(hashed) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank=2 .*world_size=2"),
        ({"on_error": "ignore"}, "unknown on_error 'ignore'"),
        ({"resolution": 0}, "resolution=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"limit": 0}, "limit=0"),
    ],
)
def test_bad_settings_are_refused(shard_set: ShardSet, options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ShardError), match=message):
        loader_of(shard_set, **options)


def test_annotations_are_those_of_the_samples_in_shard_order(shard_set: ShardSet) -> None:
    stream = SampleStream(shard_set, "train", limit=5, shuffle_buffer=3)
    samples = {sample.key: sample.caption for sample in SampleStream(shard_set, "train", limit=5)}
    assert [(key, found.caption) for key, found in stream.annotations()] == list(samples.items())
    assert len(samples) == 5
