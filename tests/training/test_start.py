"""The main process decides where a run continues; the others follow, or are refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.processes import Processes
from diffprobe.core.restarts import RECORD
from diffprobe.training.launch import LaunchedProcesses
from diffprobe.training.start import begin
from diffprobe.training.trainer import make_trainer, quiet
from tests.pretend_slurm import pretend_job
from tests.training.test_checkpoint import CELL, Interrupt, make


class Strategy:
    """Processes that srun started: what the main process sends, and whether the others can hear it."""

    cluster_environment = LaunchedProcesses(Processes(launcher="srun", count=2), address="127.0.0.1", port=15000)

    def __init__(self, sent: dict[str, str | None]) -> None:
        self.sent, self.ready = sent, False

    def setup_environment(self) -> None:
        self.ready = True

    def broadcast(self, mine: dict[str, str | None]) -> dict[str, str | None]:
        assert self.ready
        return self.sent


def other_rank(sent: dict[str, str | None]) -> Any:
    return SimpleNamespace(world_size=2, global_rank=1, strategy=Strategy(sent))


def test_other_processes_take_the_checkpoint_of_the_main_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    run_dir = tmp_path / "abc"
    for theirs, mine in ((str(run_dir / "last.ckpt"), None), (None, run_dir / "last.ckpt")):
        trainer = other_rank({"run_dir": str(run_dir), "checkpoint": theirs})
        found = begin(trainer, run_dir, mine)
        assert found == (None if theirs is None else Path(theirs))


def test_another_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    trainer = other_rank({"run_dir": "/node0/runs/abc", "checkpoint": None})
    assert begin(trainer, tmp_path / "abc", None) is None  # the same run, seen in another place
    with pytest.raises(ConfigError, match=r"process 1 has another configuration(.|\n)*def(.|\n)*/node0/runs/abc"):
        begin(trainer, tmp_path / "def", None)


def test_children_of_lightning_inherit_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = SimpleNamespace(creates_processes_externally=False)
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(cluster_environment=environment))
    monkeypatch.setenv("DIFFPROBE_START", "")  # so that it is taken away again
    checkpoint = tmp_path / "abc" / "last.ckpt"
    assert begin(trainer, tmp_path / "abc", checkpoint) == checkpoint
    for name, value in {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert begin(trainer, tmp_path / "abc", None) == checkpoint


def test_a_job_counts_its_starts_by_the_steps_of_the_checkpoint(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_job(tmp_path, monkeypatch.setenv, monkeypatch.delenv)
    settings = TrainerConfig(accelerator="cpu", max_epochs=4, enable_progress_bar=False, checkpoint_every_steps=4)
    run_dir = tmp_path / "run"
    with quiet():
        trainer = make_trainer(settings, run_dir=run_dir, callbacks=[Interrupt(5)])
        assert begin(trainer, run_dir, None) is None
        with pytest.raises(RuntimeError, match="stopped"):
            trainer.fit(make("classifier", settings), datamodule=toy(cells=(CELL,)))
    for n in (1, 2, 3):
        monkeypatch.setenv("SLURM_RESTART_COUNT", str(n))
        assert begin(trainer, run_dir, run_dir / "last.ckpt") == run_dir / "last.ckpt"
    noted = json.loads((run_dir / RECORD).read_text())
    assert noted["job"] == "17" and noted["starts"] == [0, 4, 4, 4]
    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    with pytest.raises(RunFailed, match="restarted 3 times without progress: each start found 4 done"):
        begin(trainer, run_dir, run_dir / "last.ckpt")
