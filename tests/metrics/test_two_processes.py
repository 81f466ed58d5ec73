"""Two gloo processes compute what one does: counts equal, sums to the rounding of float64."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ddp, pytest.mark.slow]


def run(world, folder):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONWARNINGS": "ignore"}
    commands = [[sys.executable, str(SCRIPT), str(rank), str(world), str(folder / "meet")] for rank in range(world)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    found = []
    for process in started:
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, err[-4000:]
        found.append(json.loads(out))
    return found


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gloo")
    (one,) = run(1, folder)
    return one, run(2, folder)


def test_both_processes_know_the_same(results):
    assert results[1][0] == results[1][1]


COUNTS = ["use", "l0", "dead_fraction", "density", "dead", "use_by_timestep", "density_by_timestep", "coherence"]


@pytest.mark.parametrize("name", [*COUNTS, "detail_of_dead_fraction", "detail_of_density"])
def test_counts_are_equal(results, name):
    one, (two, _) = results
    assert one[name] == two[name]


@pytest.mark.parametrize("name", ["fvu", "explained_variance", "gamma"])
def test_sums_agree_to_rounding(results, name):
    one, (two, _) = results
    assert two[name] == pytest.approx(one[name], rel=1e-9)
    assert two[f"{name}_by_timestep"] == pytest.approx(one[f"{name}_by_timestep"], rel=1e-9)
    assert list(two[f"{name}_by_timestep"]) == ["25", "200", "500"]  # 900 has no sample and is not made up
