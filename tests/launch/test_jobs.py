"""States of submitted tasks from squeue, results, exit statuses, heartbeats and logs."""

import time
from pathlib import Path

import pytest

from diffprobe.core.errors import RunFailed, UnknownName
from diffprobe.core.heartbeat import Heartbeat
from diffprobe.launch.jobs import chosen, is_finished, last_lines, task_states, unfinished
from diffprobe.launch.plan import Stage, Task
from diffprobe.launch.submission import Submission, send
from tests.launch.conftest import FalseSlurm
from tests.launch.test_submission import planned


@pytest.fixture
def sent(false_slurm: FalseSlurm, tmp_path: Path) -> Submission:
    tasks = tuple(
        Task(command=("train", f"seed={i}"), run_folder=str(tmp_path / f"run{i}"), work=f"run{i}") for i in range(5)
    )
    return send(planned(tmp_path, Stage(name="train", tasks=tasks), Stage(name="table", tasks=(
        Task(command=("table", "emoji"), work="table"),), after=("train",))))  # fmt: skip


def states_of(tmp_path: Path, **options: float) -> dict[str, tuple[str, str]]:
    return {state.task.job: (state.state, state.reason) for state in task_states(tmp_path / "jobs", **options)}


def test_states(false_slurm: FalseSlurm, sent: Submission, tmp_path: Path) -> None:
    name = f"diffprobe-{sent.name}-train"
    false_slurm.queue(
        f"100_0|{name}|RUNNING|1:00|9:00|None", f"100_1|{name}|PENDING|0:00|10:00|JobArrayTaskLimit",
        f"101|diffprobe-{sent.name}-table|PENDING|0:00|10:00|Dependency",
    )  # fmt: skip
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2" / "result.json").write_text("{}")
    (sent.folder / "train-3.status").write_text("2\n")
    assert states_of(tmp_path) == {
        "100_0": ("running", ""),
        "100_1": ("pending", "JobArrayTaskLimit"),
        "100_2": ("finished", ""),
        "100_3": ("failed", "status 2"),
        "100_4": ("gone", "no exit status, and SLURM has forgotten it"),
        "101": ("pending", "Dependency"),
    }
    false_slurm.knows(f"JobId=104 ArrayJobId=100 JobName={name} JobState=TIMEOUT Reason=TimeLimit")
    assert states_of(tmp_path)["100_4"] == ("timeout", "TimeLimit")
    false_slurm.knows("JobId=104 JobName=other JobState=COMPLETED")
    assert states_of(tmp_path)["100_4"][0] == "gone"


def test_progress_and_a_heartbeat_that_stopped(false_slurm: FalseSlurm, sent: Submission, tmp_path: Path) -> None:
    false_slurm.queue(f"100_0|diffprobe-{sent.name}-train|RUNNING|1:00|9:00|None")
    Heartbeat(sent.folder / "train-0.progress.json", what="train", unit="steps", total=40, done=10)
    (sent.folder / "train-100_0.log").write_text("first\n\nstep 1\rstep 2\x1b[1m\n\n")
    first = task_states(tmp_path / "jobs")[0]
    assert first.progress is not None and (first.progress.done, first.progress.total) == (10, 40)
    assert not first.stale and first.last_line == "step 2\\x1b[1m"
    assert task_states(tmp_path / "jobs", now=time.time() + 301)[0].stale
    assert first.tree()["progress"]["unit"] == "steps" and first.tree()["log"].endswith("train-100_0.log")


@pytest.mark.parametrize("line", ["RunFailed: no room.", "torch.OutOfMemoryError: no room.", "OSError: no room."])
def test_a_failed_task_shows_its_error_and_not_what_follows_it(
    false_slurm: FalseSlurm, sent: Submission, tmp_path: Path, line: str
) -> None:
    false_slurm.queue()
    (sent.folder / "train-0.status").write_text("2\n")
    (sent.folder / "train-100_0.log").write_text(f"step 1\n{line}\n  fix: make room\nsrun: error: exit code 2\n")
    assert task_states(tmp_path / "jobs")[0].last_line == line
    (sent.folder / "train-100_0.log").write_text("step 1\nsrun: error: killed\n")
    assert task_states(tmp_path / "jobs")[0].last_line == "srun: error: killed"


def test_old_submissions_are_left_out_unless_they_are_in_the_queue(
    false_slurm: FalseSlurm, sent: Submission, tmp_path: Path
) -> None:
    later = time.time() + 8 * 86400
    assert len(task_states(tmp_path / "jobs", days=7, now=later)) == 6  # in the queue
    false_slurm.queue()
    assert task_states(tmp_path / "jobs", days=7, now=later) == []
    assert len(task_states(tmp_path / "jobs", days=9, now=later)) == len(task_states(tmp_path / "jobs")) == 6


def test_last_lines_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_lines(log, 3) == []
    log.write_text("".join(f"line {i}\n" for i in range(100_000)))
    assert last_lines(log, 2) == ["line 99998", "line 99999"]


def test_ids_name_tasks_arrays_and_submissions(sent: Submission, tmp_path: Path) -> None:
    def jobs(*names: str) -> list[str]:
        return [task.job for task in chosen(tmp_path / "jobs", names)]

    assert jobs("100_3") == ["100_3"] and jobs("100") == [f"100_{i}" for i in range(5)]
    assert len(jobs(sent.name)) == 6 and jobs("101", "101") == ["101"]
    with pytest.raises(UnknownName, match=r"'10_3'(.|\n)*nearest: (.*)100_3"):
        jobs("10_3")
    with pytest.raises(RunFailed, match="nothing was submitted"):
        chosen(tmp_path / "other", ["1"])


def test_what_is_submitted_again(false_slurm: FalseSlurm, sent: Submission, tmp_path: Path) -> None:
    (tmp_path / "run2").mkdir()
    (tmp_path / "run2" / "result.json").write_text("{}")
    (sent.folder / "table-0.status").write_text("0\n")
    tasks = chosen(tmp_path / "jobs", [sent.name])
    assert [task.job for task in tasks if is_finished(task)] == ["100_2", "101"]
    (stage,) = unfinished(sent, tasks)
    assert [task.work for task in stage.tasks] == ["run0", "run1", "run3", "run4"]
    (stage,) = unfinished(sent, [tasks[0]])
    assert [task.work for task in stage.tasks] == ["run0"]
