"""Mixed rows in two gloo processes: a row buffer of which each has a share, and a permutation of single rows."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = Path(__file__).with_name("row_orders.py")
ROOT = Path(__file__).parents[2]
STEPS = 12
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


def start(names, folder, *, world, stop=-1):
    """Run the script in all processes at once; return the first one's exit code and what it complained of."""
    folder.mkdir(exist_ok=True)
    clean = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_PORT")}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    clean |= {"ROWS_WORLD": str(world), "ROWS_OUTPUT": str(folder), "ROWS_STOP": str(stop), "PYTHONPATH": path}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(world):
        place = {"WORLD_SIZE": str(world), "NODE_RANK": "0", "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, str(SCRIPT), *names]
        running.append(subprocess.Popen(command, env={**clean, **place}, stderr=subprocess.PIPE, text=True))
    try:
        complaint = running[0].communicate(timeout=600)[1]
        for process in running[1:]:
            process.communicate(timeout=60)
    finally:
        for process in running:
            process.kill()
    return running[0].returncode, complaint[-6000:]


def results(name, folder, *, world):
    return [load_file(folder / f"{name}.{rank}.safetensors") for rank in range(world)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What two processes left in one go, and after an interruption; and one process."""
    whole, cut = (tmp_path_factory.mktemp("rows") / name for name in ("whole", "cut"))
    code, complaint = start(["shuffle", "buffer"], whole, world=2)
    assert code == 0, complaint
    code, complaint = start(["buffer"], cut, world=2, stop=7)
    assert code != 0 and "stopped on purpose" in complaint
    code, complaint = start(["shuffle", "buffer"], cut, world=1)
    assert code != 0 and "row buffer" in complaint and "fix: trainer.devices=2" in complaint
    one = results("shuffle", cut, world=1)[0]
    code, complaint = start(["buffer"], cut, world=2)
    assert code == 0, complaint
    return whole, cut, one


def test_a_row_buffer_of_two_processes_resumes_bit_for_bit(folders):
    whole, resumed = (results("buffer", folder, world=2) for folder in folders[:2])
    for one, other in zip(whole, resumed, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value.equal(other[name]), name
    first, second = whole
    assert int(first["drawn"]) == STEPS and len(first["held"]) == len(second["held"]) == 30
    rows = torch.cat([first.pop("held"), second.pop("held")])
    assert len(rows.unique(dim=0)) > 45  # the shares are different rows; two epochs bring some rows twice
    assert all(value.equal(second[name]) for name, value in first.items())  # the weights are one


def test_a_permutation_of_rows_gives_the_weights_of_one_process(folders):
    two = results("shuffle", folders[0], world=2)
    for name, value in folders[2].items():
        torch.testing.assert_close(two[0][name], value, rtol=1e-3, atol=1e-4)
    assert all(value.equal(two[1][name]) for name, value in two[0].items())
