"""`diffprobe jobs`, against a false SLURM."""

import json
from pathlib import Path

import pytest

from diffprobe.cli.main import main
from diffprobe.launch.submission import Submission, send
from tests.launch.conftest import FalseSlurm, false_slurm  # noqa: F401
from tests.launch.test_submission import EXTRACT, TRAIN, planned


@pytest.fixture
def sent(false_slurm: FalseSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:  # noqa: F811
    """An extraction and two runs after it; the extraction runs."""
    from dataclasses import replace

    monkeypatch.chdir(tmp_path)
    found = send(planned(tmp_path, EXTRACT, replace(TRAIN, after_jobs=())))
    queue = (false_slurm.folder / "queue").read_text()
    false_slurm.queue(*queue.replace("PENDING|0:00|10:00|Resources", "RUNNING|1:00|9:00|None", 1).splitlines())
    return found


def jobs(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    capsys.readouterr()
    assert main(["jobs", *words, "--folder", "jobs"]) == status
    out, err = capsys.readouterr()
    return err if status else out


def test_the_list(sent: Submission, capsys) -> None:
    (sent.folder / "extract-100.log").write_text("8 images x 2 cells\n")
    lines = jobs(capsys).splitlines()
    assert lines[0].split() == ["job", "stage", "state", "progress", "left", "command"]
    assert lines[1].split() == ["100", "extract", "running", "extract"] and lines[2] == "    8 images x 2 cells"
    assert lines[3].split() == ["101_0", "train", "pending", "train", "seed=0"] and lines[4].strip() == "Resources"
    tree = json.loads(jobs(capsys, "--format", "json"))
    assert [one["state"] for one in tree] == ["running", "pending", "pending"] and tree[0]["job"] == "100"
    assert json.loads(jobs(capsys, "list", "--format", "json")) == tree


def test_progress_time_left_and_a_stale_heartbeat(sent: Submission, capsys) -> None:
    progress = {
        "what": "extract", "unit": "images", "done": 1200, "total": 4000, "seconds_left": 3900.0, "written_at": 0.0,
        "stale_after": 300.0,
    }  # fmt: skip
    (sent.folder / "extract-0.progress.json").write_text(json.dumps(progress))
    out = jobs(capsys)
    assert "extract 1,200/4,000 images  1 h 05 min" in out and "it may hang" in out


def test_cancel(sent: Submission, false_slurm: FalseSlurm, capsys) -> None:  # noqa: F811
    assert jobs(capsys, "cancel", "101").splitlines() == ["cancelled: 101_0", "cancelled: 101_1"]
    assert "scancel 101_0 101_1" in false_slurm.calls
    out = jobs(capsys, "cancel", sent.name)
    assert "cancelled: 100" in out and "not in the queue: 101_0" in out
    assert "nearest" in jobs(capsys, "cancel", "102", status=2)


def test_logs(sent: Submission, capsys) -> None:
    (sent.folder / "train-101_1.log").write_text("".join(f"line {i}\n" for i in range(9)))
    out = jobs(capsys, "logs", "101", "--lines", "2")
    assert out.splitlines()[-2:] == ["line 7", "line 8"] and "(no log yet)" in out and "== 101_1 train seed=1" in out
    assert "--lines=0" in jobs(capsys, "logs", "101", "--lines", "0", status=2)


def test_resubmit(sent: Submission, false_slurm: FalseSlurm, capsys) -> None:  # noqa: F811
    assert "nothing to submit again" in jobs(capsys, "resubmit", "101", status=2)  # both wait
    false_slurm.queue()
    (sent.folder / "extract-0.status").write_text("0\n")
    (sent.folder / "train-0.status").write_text("1\n")
    out = jobs(capsys, "resubmit", "101_0")
    assert "job 102: train\n" in out and "102 run folder: /runs/0" in out
    out = jobs(capsys, "resubmit", sent.name)
    assert "finished, left out: 100" in out and "103 run folder: /runs/1" in out and "/runs/0" not in out


def test_nothing_was_submitted(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["jobs"]) == 0
    assert "nothing was submitted from 'runs/jobs' in 7 days" in capsys.readouterr().out
    assert main(["jobs", "--format", "json"]) == 0 and json.loads(capsys.readouterr().out) == []
    assert main(["jobs", "logs", "17"]) == 2 and "diffprobe submit" in capsys.readouterr().err
