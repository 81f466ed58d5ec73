"""The size of a store is known before it is written, and a full disk stops a run without loss."""

import contextlib
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffprobe.backbones.extractor import DiffusionFeatures
from diffprobe.core.byte_size import folder_bytes
from diffprobe.core.errors import RunFailed
from diffprobe.features.disk_space import Need, check_space, sample_bytes
from diffprobe.features.extract import extract
from diffprobe.features.reader import FeatureStore
from diffprobe.features.request import Request

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "mean"},
        {"pool": "none"},
        {"pool": "grid2", "unconditional": True, "condition": "prompt", "prompt": "cat"},
        {"pool": "tokens3", "draws": 2, "keep_draws": True},
        {"pool": "max", "draws": 3},
    ],
)
def test_the_computed_size_of_a_sample_is_the_real_one(tiny_sd, options):
    extractor = DiffusionFeatures.from_pretrained(
        str(tiny_sd), taps=["mid_block", "up_blocks.2"], timesteps=[5, 100], device="cpu", **options
    )
    found = extractor(torch.rand(2, 3, 32, 32), keys=["a", "b"])
    assert sample_bytes(extractor.plan) == sum(4 * values[0].numel() for values in found.values())


def test_what_is_announced_is_a_little_more_than_what_is_written(configs):
    lines = []
    parts = configs(features_pool="none")
    store = extract(*parts, progress=False, announce=lines.append)
    request = Request(*parts)
    (announced,) = [line for line in lines if line.startswith("to write")]
    assert "24 images x 4 cells" in announced and "free" in announced and str(store) in announced
    tensors = 24 * sample_bytes(request.plan)
    assert tensors < folder_bytes(store) < tensors + 24 * 512 + 7 * 5 * 8192


def test_too_small_a_disk_is_refused_before_anything_is_read(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    fits = Need(tmp_path, 10, 100, 1)
    check_space([fits, Need(other, 10, 100, 1)])
    half = (os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize) // 1000 * 6 // 10
    check_space([Need(tmp_path, 1000, half - 10_000, 1)])
    with pytest.raises(RunFailed, match="are needed, but .* left") as caught:  # each fits, both do not
        check_space([Need(tmp_path, 1000, half, 1), Need(other, 1000, half, 1)])
    assert f"1,000 samples of {half:,} bytes in '{other}'" in str(caught.value)


@contextlib.contextmanager
def files_of_at_most(n_bytes):
    """Let this process write no longer files; Python ignores the signal, so that the write itself fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_limit_on_files_stops_the_run_and_keeps_what_is_complete(configs, file_bytes):
    """val and test have 2 samples a shard, train 5 or 6; a file may hold 4 of the larger cell."""
    order = {"data_train_split": "val", "data_val_split": "test", "data_test_split": "train"}
    parts = configs(**order, features_pool="none")
    with files_of_at_most(4 * 4 * 32 * 8 * 8), pytest.raises(RunFailed, match=r"is full \(File too large\)") as caught:
        extract(*parts, progress=False)
    assert "complete and kept: 4 of 7 shards; next: 'train-0000.tar'" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    (path,) = Path(parts[2].store).iterdir()
    assert FeatureStore.open(path).missing() == [f"train-000{i}.tar" for i in range(3)]
    assert not list(path.glob(".writing-*"))
    alone = extract(parts[0], parts[1], replace(parts[2], store=f"{parts[2].store}-alone"), progress=False)
    assert file_bytes(extract(*parts, progress=False)) == file_bytes(alone)


@contextlib.contextmanager
def small_disk(folder, n_bytes):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights that this user has not got")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class Neighbour:
    """A bar that fills the disk once so many images are done, as another user of it may."""

    def __init__(self, folder, after):
        self.folder, self.left = folder, after

    def __call__(self, n):
        return contextlib.nullcontext(self)

    def update(self, n):
        self.left -= n
        if self.left <= 0 and not (self.folder / "theirs").exists():
            with contextlib.suppress(OSError), open(self.folder / "theirs", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs")
def test_a_disk_that_fills_up_meanwhile_stops_the_run_and_keeps_what_is_complete(configs, filled, file_bytes, tmp_path):
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        parts = configs(features_store=str(disk / "s"))
        with pytest.raises(RunFailed, match="is full") as caught:
            extract(*parts, progress=Neighbour(disk, 8))
        assert "complete and kept: 1 of 7 shards" in str(caught.value)
        (disk / "theirs").unlink()
        path = extract(*parts, progress=False)
        assert file_bytes(path) == file_bytes(FeatureStore.find(filled[2].store, Request(*filled).manifest).path)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="tmpfs")
def test_a_disk_that_is_too_small_is_noticed_before_the_first_image(configs, tmp_path):
    with small_disk(tmp_path / "disk", 1 << 18) as disk:
        with pytest.raises(RunFailed, match="are needed"):
            extract(*configs(features_store=str(disk / "s"), features_pool="none"), progress=False)
        (path,) = (disk / "s").iterdir()
        assert [entry.name for entry in path.iterdir()] == ["manifest.json"]
