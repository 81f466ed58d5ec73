"""The client of SLURM, against programs that answer from files; tests/slurm has the real ones."""

from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.launch import slurm
from tests.launch.conftest import FalseSlurm


def test_jobs_are_submitted_seen_and_cancelled(false_slurm: FalseSlurm, tmp_path: Path) -> None:
    script = tmp_path / "it.sbatch"
    script.write_text("#SBATCH --job-name=a\n#SBATCH --array=0-1%2\n")
    assert slurm.submit(script, "--dependency=afterok:7") == "100"
    assert false_slurm.calls == [f"sbatch --parsable --dependency=afterok:7 {script}"]
    found = slurm.queue()
    assert sorted(found) == ["100_0", "100_1"] and found["100_1"].name == "a" and found["100_1"].reason == "Resources"
    slurm.cancel(["100_0"])
    assert sorted(slurm.queue()) == ["100_1"]
    slurm.cancel([])
    assert len([call for call in false_slurm.calls if call.startswith("scancel")]) == 1


def test_slurms_own_words_are_passed_on(false_slurm: FalseSlurm, tmp_path: Path) -> None:
    (tmp_path / "it.sbatch").write_text("#SBATCH --partition=nope\n")
    false_slurm.refuse("nope")
    with pytest.raises(RunFailed, match=r"invalid partition specified: nope(.|\n)*Invalid partition name specified"):
        slurm.submit(tmp_path / "it.sbatch")


def test_what_slurm_has_forgotten_is_empty(false_slurm: FalseSlurm) -> None:
    assert slurm.describe("17") == {}
    false_slurm.knows("JobId=17 JobName=a JobState=TIMEOUT Reason=TimeLimit ExitCode=0:15")
    assert slurm.describe("17")["JobState"] == "TIMEOUT"


def test_without_slurm_the_local_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.installed()
    with pytest.raises(RunFailed, match=r"sbatch was not found(.|\n)*run it here: diffprobe train a=b"):
        slurm.require_sbatch("diffprobe train a=b")
    with pytest.raises(RunFailed, match="squeue was not found"):
        slurm.queue()


def test_a_controller_that_does_not_answer(monkeypatch: pytest.MonkeyPatch, false_slurm: FalseSlurm) -> None:
    (false_slurm.folder / "squeue").write_text("#!/bin/bash\nexec sleep 5\n")
    monkeypatch.setattr(slurm, "TIMEOUT", 0.2)
    with pytest.raises(RunFailed, match=r"squeue did not answer within 0.2 s"):
        slurm.queue()
