"""Two gloo processes fit the caption regressors that one process fits on the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("captions.py")
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("captions")
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for world in (1, 2):
        own = {"PROBES_WORLD": str(world), "PROBES_OUTPUT": str(root / str(world))}
        environment = {**clean, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **own}
        done = subprocess.run(
            [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-4000:]
    return root / "1", root / "2"


@pytest.mark.parametrize("key", ["ridge_32-true", "mlp_32-true", "contrastive_32-true", "diffdis_32-true"])
def test_two_processes_fit_what_one_does(folders, key):
    one, two = (load_file(folder / f"{key}.safetensors") for folder in folders)
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")
    found = [json.loads((folder / "results.json").read_text())[key] for folder in folders]
    assert len(found[0]) == len(found[1]) == {"contrastive_32-true": 8, "diffdis_32-true": 16}.get(key, 10)
    for a, b in zip(*found, strict=True):
        assert (a["name"], a["split"], a["n"]) == (b["name"], b["split"], b["n"])
        tolerance = 1e-3 if a["name"] == "r2" else 1.5 / a["n"]  # a tie may be broken the other way
        assert b["value"] == pytest.approx(a["value"], abs=tolerance)
        assert b["detail"]["n_groups"] == a["detail"]["n_groups"] == 20


def test_half_precision_runs_in_two_processes(folders):
    one, two = (json.loads((folder / "results.json").read_text())["contrastive_bf16-mixed"] for folder in folders)
    for a, b in zip(one, two, strict=True):
        assert b["value"] == pytest.approx(a["value"], abs=0.15)
