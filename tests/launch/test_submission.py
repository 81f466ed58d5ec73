"""What is submitted is recorded, and taken back where SLURM refuses a part of it."""

import json
import threading
from pathlib import Path

import pytest

from diffprobe.config.cluster import ClusterConfig
from diffprobe.core.errors import RunFailed, SchemaError
from diffprobe.launch import submission as module
from diffprobe.launch.plan import Stage, Task
from diffprobe.launch.submission import (
    RECORD,
    Submission,
    active_tasks,
    new_submission,
    read_submissions,
    send,
    submission_lock,
)
from tests.launch.conftest import FalseSlurm

TRAIN = Stage(
    name="train",
    tasks=tuple(Task(command=("train", f"seed={i}"), run_folder=f"/runs/{i}", work=f"/runs/{i}") for i in range(2)),
    after=("extract",),
    after_jobs=("55_1",),
)
EXTRACT = Stage(name="extract", tasks=(Task(command=("extract",), work="store x 0/1"),))
TABLE = Stage(name="table", tasks=(Task(command=("table", "emoji"), work="table"),), after=("train",))


def planned(folder: Path, *stages: Stage) -> Submission:
    return new_submission(
        stages, ClusterConfig(folder="jobs"), cluster_name="x", command=("train",), label="emoji/sae", workdir=folder
    )


def test_stages_wait_for_each_other_and_come_back_from_the_record(false_slurm: FalseSlurm, tmp_path: Path) -> None:
    sent = send(planned(tmp_path, EXTRACT, TRAIN, TABLE))
    assert sent.jobs == {"extract": "100", "train": "101", "table": "102"}
    options = [call.split()[2:-1] for call in false_slurm.calls if call.startswith("sbatch")]
    kill = "--kill-on-invalid-dep=yes"
    assert options == [[], ["--dependency=afterok:100:55_1", kill], ["--dependency=afterok:101", kill]]
    assert read_submissions(tmp_path / "jobs") == [sent]
    assert [task.job for task in sent.tasks()] == ["100", "101_0", "101_1", "102"]
    one = list(sent.tasks())[1]
    assert one.log == sent.folder / "train-101_0.log" and one.file(".status").name == "train-0.status"
    assert sorted(path.name for path in sent.folder.iterdir()) == [
        "extract.sbatch", RECORD, "table.sbatch", "train.sbatch"
    ]  # fmt: skip


def test_a_part_that_slurm_refuses_takes_back_the_whole(false_slurm: FalseSlurm, tmp_path: Path) -> None:
    false_slurm.refuse("(table emoji)")
    with pytest.raises(RunFailed, match=r"Invalid partition name(.|\n)*cancelled again: 100, 101"):
        send(planned(tmp_path, EXTRACT, TRAIN, Stage(name="table", tasks=TABLE.tasks)))
    assert "scancel 100 101" in false_slurm.calls
    assert read_submissions(tmp_path / "jobs") == []


def test_work_is_active_while_squeue_shows_a_job_of_that_id_and_name(false_slurm: FalseSlurm, tmp_path: Path) -> None:
    assert active_tasks(tmp_path / "jobs") == {} and false_slurm.calls == []  # nothing to ask about
    sent = send(planned(tmp_path, Stage(name="train", tasks=TRAIN.tasks)))
    name = f"diffprobe-{sent.name}-train"
    assert set(active_tasks(tmp_path / "jobs")) == {"/runs/0", "/runs/1"}
    false_slurm.queue(f"100_1|{name}|RUNNING|1:00|9:00|None")
    assert set(active_tasks(tmp_path / "jobs")) == {"/runs/1"}
    false_slurm.queue("100_1|of somebody else|RUNNING|1:00|9:00|None")  # SLURM has counted from the start again
    assert active_tasks(tmp_path / "jobs") == {}


def test_a_record_that_was_changed_is_refused_with_its_folder(false_slurm: FalseSlurm, tmp_path: Path) -> None:
    path = send(planned(tmp_path, EXTRACT)).folder / RECORD
    path.write_text(json.dumps({**json.loads(path.read_text()), "jobs": {}}))
    with pytest.raises(SchemaError, match=r"submission.json' was modified(.|\n)*remove the folder"):
        read_submissions(tmp_path / "jobs")


def test_one_process_at_a_time_submits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOCK_SECONDS", 0.2)
    faults: list[Exception] = []

    def second() -> None:
        try:
            with submission_lock(tmp_path):
                pass
        except RunFailed as error:
            faults.append(error)

    with submission_lock(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another `diffprobe submit`" in str(faults[0])
    second()
    assert len(faults) == 1
