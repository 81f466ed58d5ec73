"""Two gloo processes find the massive channels of live features that one process finds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from diffprobe.config.compose import load_run
from diffprobe.core.result import read_result
from diffprobe.features.massive_channels import to_recorded
from diffprobe.runs.massive_notes import DETAIL
from diffprobe.runs.train import make_source

SCRIPT = Path(__file__).with_name("live_features.py")
ROOT = Path(__file__).parents[2]
PLANTED = 5
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


@pytest.fixture(scope="module")
def settings(tiny_sd: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A run over the tiny backbone with one massive channel in the output of its mid block."""
    folder = shutil.copytree(tiny_sd, tmp_path_factory.mktemp("planted") / "model")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights["mid_block.resnets.1.conv2.bias"][PLANTED] += 300.0
    save_file(weights, file)
    return [
        f"backbone.path={folder}", "backbone.device=cpu", f"data.path={tiny_shards}", "features.source=live",
        "features.taps=[mid_block]", "features.timesteps=[20]", "features.massive.treatment=clip",
        "features.massive.images=4", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none",
    ]  # fmt: skip


def test_two_processes_find_the_channels_that_one_finds(settings: list[str], tmp_path: Path) -> None:
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {
        "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "LIVE_WORLD": "2", "LIVE_OUTPUT": str(tmp_path),
        "LIVE_PROBES": "classifier",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT), *settings]
    done = subprocess.run(command, env=clean | own, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    source = make_source(load_run(None, [*settings, "probe=linear"]))
    source.request.load_extractor(images=True)
    assert source.request.massive is not None
    expected: dict[str, Any] = json.loads(json.dumps(to_recorded(*source.request.massive)))
    ranks = [json.loads((tmp_path / f"classifier-{rank}.json").read_text())["massive"] for rank in (0, 1)]
    assert ranks == [expected, expected]
    ((cell, one),) = expected["taps"]["mid_block"].items()
    assert list(one["channels"]) == [str(PLANTED)] and len(expected["keys"]) == 4
    (record,) = (tmp_path / "classifier").glob("*/*/result.json")
    metrics = read_result(record).metrics
    assert metrics and all(found.detail[DETAIL] == {cell: one} for found in metrics)
