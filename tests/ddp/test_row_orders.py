"""Mixed rows in two gloo processes: a row buffer of which each has a share, and a permutation of single rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("row_orders.py")
ROOT = Path(__file__).parents[2]
STEPS = 12
pytestmark = pytest.mark.ddp


def start(name, folder, *, world, stop=-1):
    """Run the script and return its exit code and what it complained of."""
    folder.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    own = {"ROWS_WORLD": str(world), "ROWS_OUTPUT": str(folder), "ROWS_STOP": str(stop), "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, str(SCRIPT), name]
    done = subprocess.run(
        command, env={**clean, **own, "PYTHONPATH": path}, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stderr[-6000:]


def finish(name, folder, *, world):
    code, complaint = start(name, folder, world=world)
    assert code == 0, complaint
    return [load_file(folder / f"{name}.{rank}.safetensors") for rank in range(world)]


def test_a_row_buffer_of_two_processes_resumes_bit_for_bit(tmp_path):
    whole = finish("buffer", tmp_path / "whole", world=2)
    code, complaint = start("buffer", tmp_path / "cut", world=2, stop=7)
    assert code != 0 and "stopped on purpose" in complaint
    code, complaint = start("buffer", tmp_path / "cut", world=1)
    assert code != 0 and "a row buffer in shares for 2 processes; this run has 1." in complaint
    resumed = finish("buffer", tmp_path / "cut", world=2)
    for one, other in zip(whole, resumed, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value.equal(other[name]), name
    first, second = whole
    assert int(first["drawn"]) == STEPS and len(first["held"]) == len(second["held"]) == 30
    rows = torch.cat([first.pop("held"), second.pop("held")])
    assert len(rows.unique(dim=0)) > 45  # the shares are different rows; two epochs bring some rows twice
    assert all(value.equal(second[name]) for name, value in first.items())  # the weights are one


def test_a_permutation_of_rows_gives_the_weights_of_one_process(tmp_path):
    (one,), two = (finish("shuffle", tmp_path / str(world), world=world) for world in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-3, atol=1e-4)
    assert all(value.equal(two[1][name]) for name, value in two[0].items())


def test_a_buffer_that_two_processes_cannot_share_is_refused(tmp_path):
    # one process says it before anything is trained; the sizes are judged in tests/training/test_rows.py
    code, complaint = start("buffer_of_61", tmp_path, world=2)
    assert code != 0 and "a row buffer of 61 rows can't be shared equally by 2 processes." in complaint
