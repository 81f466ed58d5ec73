"""A job that starts again and again without progress stops, with the reason."""

import os
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed
from diffprobe.core.restarts import is_restart, job_id, note_start, written_by_this_job

JOB = {"SLURM_JOB_ID": "20", "SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "3"}


def start(n: int, **more: str) -> dict[str, str]:
    return {**JOB, "SLURM_RESTART_COUNT": str(n), **more}


def test_ids() -> None:
    assert job_id(JOB) == "17_3" and job_id({"SLURM_JOB_ID": "20"}) == "20" and job_id({}) is None
    assert not is_restart(JOB) and not is_restart(start(0)) and is_restart(start(2))


def test_three_restarts_without_progress_are_the_last(tmp_path: Path) -> None:
    record = tmp_path / "run" / "restarts.json"
    for n, progress in enumerate((0, 8, 8, 8)):
        note_start(record, progress, start(n))
    with pytest.raises(RunFailed, match=r"job 17_3 was restarted 3 times without progress: each start found 8 done"):
        note_start(record, 8, start(4))


def test_progress_starts_the_count_again_and_so_does_another_job(tmp_path: Path) -> None:
    record = tmp_path / "restarts.json"
    for n, progress in enumerate((0, 0, 0, 4, 4, 4, 5, 5, 5)):
        note_start(record, progress, start(n))
    note_start(record, 5, {"SLURM_JOB_ID": "99"})  # submitted again by hand
    for n in (1, 2):
        note_start(record, 5, {"SLURM_JOB_ID": "99", "SLURM_RESTART_COUNT": str(n)})


def test_the_limit_is_that_of_the_cluster_and_nothing_is_written_outside_of_slurm(tmp_path: Path) -> None:
    record = tmp_path / "restarts.json"
    note_start(record, 0, {})
    assert not record.exists()
    note_start(record, 0, start(0, DIFFPROBE_MAX_RESTARTS="1"))
    with pytest.raises(RunFailed, match="restarted 1 times"):
        note_start(record, 0, start(1, DIFFPROBE_MAX_RESTARTS="1"))
    record.write_text("{")
    note_start(record, 0, start(2, DIFFPROBE_MAX_RESTARTS="1"))


def test_what_earlier_starts_of_a_job_have_written(tmp_path: Path) -> None:
    record, result = tmp_path / "restarts.json", tmp_path / "result.json"
    result.touch()
    os.utime(result, (1e9, 1e9))  # of a run long ago, that this job trains anew
    note_start(record, 0, start(0))
    assert not written_by_this_job(record, result, start(1))
    result.touch()
    assert written_by_this_job(record, result, start(1)) and not written_by_this_job(record, result, start(0))
    assert not written_by_this_job(record, result, {"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "1"})
    assert not written_by_this_job(record, tmp_path / "none", start(1))
    note_start(record, 0, start(1))
    assert written_by_this_job(record, result, start(2))
