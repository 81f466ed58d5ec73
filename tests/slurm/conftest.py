"""A real SLURM of one node, started where the tests may (root on Debian), and jobs on it that a test can follow."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from diffprobe.cli.main import main
from diffprobe.core.digest import digest_file
from diffprobe.core.result import read_result
from diffprobe.launch import slurm
from diffprobe.launch.jobs import TaskState, task_states
from tests.faults.conftest import mounted  # noqa: F401  # a fixture of both

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "tests" / "slurm" / "one_node.sh"
CLUSTER = """
partition: debug
cpus_per_node: 2
cpus_per_task: 1
memory: 1500M
time: "0:20:00"
signal_seconds: 60
array_limit: 2
folder: jobs
command: {command}
environment:
  {{PYTHONPATH: {root}, WANDB_MODE: offline, WATCHED_LOG: {log}, WATCHED_SECONDS: "{seconds}",
   WATCHED_START: "{start}"}}
"""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM with the partitions `debug` and `high`, beside any other that the machine has."""
    missing = [name for name in ("slurmctld", "slurmd", "munged", "sbatch") if shutil.which(name) is None]
    if missing or os.getuid() != 0:
        why = f"{', '.join(missing)} not installed (as root on Debian: make slurm)" if missing else "not root"
        pytest.skip(f"no SLURM can be started for the tests: {why}")
    folder = tmp_path_factory.mktemp("slurm")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        subprocess.run([SCRIPT, "up", folder], check=True)
        yield
    finally:
        subprocess.run([SCRIPT, "down", folder], check=False)
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before


class Jobs:
    """Submits commands from a folder of its own, and follows what becomes of them."""

    def __init__(self, folder: Path, settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.settings, self._capsys = folder, settings, capsys
        self.log = folder / "steps.jsonl"
        self.write_cluster()

    def write_cluster(self, *, seconds: float = 0.0, start: float = 0.0) -> None:
        """Describe the cluster; a training step takes so many seconds longer, and the first start of a job."""
        path = self.folder / "configs" / "cluster" / "test.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        command = f"{sys.executable} {ROOT}/tests/slurm/watched.py"
        path.write_text(CLUSTER.format(command=command, root=ROOT, log=self.log, seconds=seconds, start=start))

    def submit(self, *words: str) -> str:
        """Submit, and return what is printed."""
        self._capsys.readouterr()
        status = main(["submit", *words, "cluster=test"])
        out, err = self._capsys.readouterr()
        assert status == 0, err
        return out

    def train(self, *settings: str) -> str:
        """Submit a training run."""
        return self.submit("train", *self.settings, *settings)

    def states(self) -> list[TaskState]:
        """Return the states of all tasks."""
        return task_states(self.folder / "jobs")

    def wait(self, done: Callable[[list[TaskState]], bool], *, seconds: float = 600.0) -> list[TaskState]:
        """Wait until something holds of the states, and skip the pause that SLURM makes after a requeue."""
        end = time.monotonic() + seconds
        waiting: dict[str, float] = {}
        while time.monotonic() < end:
            found = self.states()
            if done(found):
                return found
            for state in found:
                if state.state != "pending" or state.reason != "BeginTime":
                    waiting.pop(state.task.job, None)
                # slurmd refuses a job whose former start it has not cleared away
                elif time.monotonic() - waiting.setdefault(state.task.job, time.monotonic()) > 5:
                    with contextlib.suppress(Exception):
                        slurm.call("scontrol", "update", f"JobId={state.task.job}", "StartTime=now")
            time.sleep(0.5)
        raise AssertionError(self.shown())

    def finish(self, *, seconds: float = 900.0) -> list[TaskState]:
        """Wait until all tasks are finished."""
        bad = ("failed", "gone", "cancelled", "timeout")

        def ended(states: list[TaskState]) -> bool:
            assert not [state for state in states if state.state in bad], self.shown()
            return all(state.state == "finished" for state in states)

        return self.wait(ended, seconds=seconds)

    def steps(self) -> list[dict]:
        """Return what the tasks have logged of their training steps."""
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def shown(self) -> str:
        """Return states and logs, for a failed test."""
        lines = [f"{state.task.job} {state.state} {state.reason}" for state in self.states()]
        logs = [f"== {path}\n{path.read_text()[-3000:]}" for path in sorted(self.folder.glob("jobs/*/*.log"))]
        return "\n".join([*lines, *logs])

    def cancel(self) -> None:
        """Cancel what is left."""
        with contextlib.suppress(Exception):
            slurm.cancel(state.task.job for state in self.states() if state.state in ("pending", "running"))


@pytest.fixture(scope="session")
def settings(tiny_sd: Path, tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A tiny run of an autoencoder, whose store is complete."""
    store = tmp_path_factory.mktemp("stores")
    found = [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "data.batch_size=4",
        "features.taps=[mid_block]", "features.timesteps=[20]", f"features.store={store}",
        "probe=topk", "probe.params.k=4", "probe.params.n_latents=64", "probe.params.dead_window=100",
        "trainer.accelerator=cpu", "trainer.max_epochs=6", "trainer.enable_progress_bar=false",
    ]  # fmt: skip
    assert main(["extract", *found, "--quiet"]) == 0
    return found


@pytest.fixture
def jobs(
    cluster: None,
    settings: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Jobs]:
    """Jobs that are submitted from the test's folder, and cancelled at its end."""
    monkeypatch.chdir(tmp_path)
    made = Jobs(tmp_path, settings, capsys)
    yield made
    made.cancel()


def outcome(result: Path) -> tuple[object, dict[str, str]]:
    """Return the metrics of a run and the digests of its probes."""
    files = sorted(result.parent.rglob("*.safetensors"))
    return read_result(result).metrics, {str(path.relative_to(result.parent)): digest_file(path) for path in files}


def trained_on(steps: list[dict]) -> Counter[tuple[int, str]]:
    """Count how often each sample was trained on in each epoch, over all processes and starts of a job."""
    return Counter((step["epoch"], key) for step in steps for key in step["keys"])
