"""1, 2 and 4 processes over shards of unequal sizes, fewer than processes: equal stores, counts and metrics."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from diffprobe.core.digest import digest_file
from diffprobe.core.result import read_result
from diffprobe.shards.index import ShardSet, build_index
from diffprobe.shards.reader import read_shard
from diffprobe.shards.writer import write_shard

SCRIPT = Path(__file__).with_name("live_features.py")
ROOT = Path(__file__).parents[2]
SIZES = {"train": (9, 1, 2), "val": (6,), "test": (5, 1)}
"""Samples per shard: three training shards for four processes, and splits that four share unevenly."""
ORDER = (0, 2, 4, 6, 8, 10, 12, 14, 1, 5, 9, 13, 3, 16, 17, 18, 7, 19, 11, 20, 21, 22, 15, 23)
"""Samples in these shards: of balanced classes a bias has a gradient of rounding alone, and Adam steps by it."""
WORLDS, EPOCHS = (1, 2, 4), 2
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


def start(command: list[str], **environ: str) -> subprocess.Popen[str]:
    launcher = ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")
    clean = {k: v for k, v in os.environ.items() if k not in launcher and not k.startswith("SLURM_")}
    own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environ}
    return subprocess.Popen(command, env=clean | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end(process: subprocess.Popen[str]) -> None:
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0, text[-4000:]


@pytest.fixture(scope="module")
def shards(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    root = tmp_path_factory.mktemp("uneven")
    samples = [(raw.key, raw.files) for path in sorted(tiny_shards.glob("*.tar")) for raw in read_shard(path)]
    samples.sort()
    samples = [samples[i] for i in ORDER]
    for split, sizes in SIZES.items():
        for number, size in enumerate(sizes):
            write_shard(root / f"{split}-{number:04d}.tar", samples[:size])
            del samples[:size]
    assert not samples
    return build_index(root, name="uneven", licence="CC0-1.0")


@pytest.fixture(scope="module")
def settings(tiny_sd: Path, shards: ShardSet) -> list[str]:
    return [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={shards.root}", "features.taps=[mid_block]",
        "features.timesteps=[20]",
    ]  # fmt: skip


def test_extraction_gives_the_same_store(settings: list[str], tmp_path: Path) -> None:
    """The processes run at once."""
    stores = {}
    for world in WORLDS:
        store = tmp_path / str(world)
        command = [sys.executable, "-m", "diffprobe", "extract", "--quiet", *settings, f"features.store={store}"]
        parts = [start([*command, "--process", f"{i}/{world}"]) for i in range(world)]
        for process in parts:
            end(process)
        files = [path for path in sorted(store.rglob("*")) if path.is_file()]
        stores[world] = {str(path.relative_to(store)): digest_file(path) for path in files}
    assert stores[1] and all(found == stores[1] for found in stores.values())


@pytest.fixture(scope="module")
def folders(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Outputs of the training, by the number of processes; a step has all training samples."""
    root = tmp_path_factory.mktemp("trained")
    more = [
        "features.source=live", f"trainer.max_epochs={EPOCHS}", "trainer.enable_progress_bar=false", "logger=none",
    ]  # fmt: skip
    for world in WORLDS:
        environ = {"LIVE_WORLD": str(world), "LIVE_OUTPUT": str(root / str(world))}
        environ |= {"LIVE_BATCH": str(sum(SIZES["train"])), "LIVE_PROBES": "classifier,sae"}
        end(start([sys.executable, str(SCRIPT), *settings, *more], **environ))
    return {world: root / str(world) for world in WORLDS}


@pytest.mark.parametrize("name", ["classifier", "sae"])
def test_each_sample_is_seen_once(folders: dict[int, Path], shards: ShardSet, name: str) -> None:
    for world, folder in folders.items():
        parts = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]
        assert len(parts) == world
        trained = Counter((epoch, key) for part in parts for epoch, key in part["train"])
        assert set(trained.values()) == {1} and len(trained) == EPOCHS * shards.n_samples("train")
        assert {len(part["train"]) for part in parts} == {EPOCHS * shards.n_samples("train") // world}
        for split in ("val", "test"):
            keys = Counter(key for part in parts for key in part[split])
            assert set(keys.values()) == {1} and len(keys) == shards.n_samples(split), (world, split)


@pytest.mark.parametrize("name", ["classifier", "sae"])
def test_metrics_are_those_of_one_process(folders: dict[int, Path], name: str) -> None:
    found = {world: read_result(next((folder / name).glob("*/*/result.json"))) for world, folder in folders.items()}
    one = found[1].metrics
    assert one
    for world in WORLDS[1:]:
        assert len(found[world].metrics) == len(one)
        for a, b in zip(one, found[world].metrics, strict=True):
            assert (a.name, a.split, a.cell, a.target, a.n) == (b.name, b.split, b.cell, b.target, b.n)
            assert b.value == pytest.approx(a.value, rel=1e-4, abs=1e-5), (world, a.name, a.split, a.target)
            assert b.controls == pytest.approx(a.controls, rel=1e-4, abs=1e-5), (world, a.name, a.split, a.target)
