"""The backbone at work in two gloo processes: together they see each held-out sample once, and find what one finds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diffprobe.core.result import read_result
from diffprobe.probes.classifier.linear import LinearProbe
from diffprobe.probes.direction import Direction
from diffprobe.shards.index import build_index

SCRIPT = Path(__file__).with_name("live_features.py")
ROOT = Path(__file__).parents[2]
CELL = "mid_block@t20.empty.mean"
SHARDS = {
    "train-0000": "train-0000",
    "train-0001": "val-0000",
    "train-0002": "val-0001",
    "val-0000": "train-0001",
    "test-0000": "train-0002",
}
"""Name here -> name in the tiny set: 10 samples to train on and 5 in each other split, which two share unevenly."""
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


@pytest.fixture(scope="module")
def shards(tiny_shards, tmp_path_factory):
    root = tmp_path_factory.mktemp("odd_shards")
    for name, source in SHARDS.items():
        shutil.copy(tiny_shards / f"{source}.tar", root / f"{name}.tar")
    return build_index(root, name="odd", licence="CC0-1.0")


@pytest.fixture(scope="module")
def folders(tiny_sd, shards, tmp_path_factory):
    root = tmp_path_factory.mktemp("live")
    settings = [
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={shards.root}",
        "features.source=live",
        "features.taps=[mid_block]",
        "features.timesteps=[20]",
        "trainer.max_epochs=2",
        "trainer.enable_progress_bar=false",
        "logger=none",
    ]
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for world in ("1", "2"):
        own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "LIVE_WORLD": world, "LIVE_OUTPUT": str(root / world)}
        command = [sys.executable, str(SCRIPT), *settings]
        done = subprocess.run(command, env=clean | own, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
    return root / "1", root / "2"


def seen(folder, name):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(f"{name}-*.json"))]


@pytest.mark.parametrize("name", ["classifier", "direction"])
def test_every_held_out_sample_is_seen_by_one_process(folders, name):
    (one,), two = (seen(folder, name) for folder in folders)
    for split in ("val", "test"):
        assert len(one[split]) == len(set(one[split])) == 5
        first, second = (part[split] for part in two)
        assert sorted(first + second) == sorted(one[split]) and {len(first), len(second)} == {2, 3}


def result_of(folder, name):
    (path,) = (folder / name).glob("*/*/result.json")
    return read_result(path), path.parent / "probes"


@pytest.mark.parametrize("name", ["classifier", "direction"])
def test_two_processes_find_what_one_finds(folders, name):
    (one, probes), (two, others) = (result_of(folder, name) for folder in folders)
    assert len(one.metrics) == len(two.metrics) > 0
    for a, b in zip(one.metrics, two.metrics, strict=True):
        assert (a.name, a.split, a.cell, a.target, a.n) == (b.name, b.split, b.cell, b.target, b.n) and b.n == 5
        assert b.value == pytest.approx(a.value, abs=1e-5), (a.name, a.split, a.target)
        assert b.controls == pytest.approx(a.controls, abs=1e-5), (a.name, a.split, a.target)
    if name == "direction":
        expected, found = (Direction.load(root / "style" / CELL).vector for root in (probes, others))
    else:
        expected, found = (LinearProbe.from_pretrained(root / "style" / CELL).weight for root in (probes, others))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4)
