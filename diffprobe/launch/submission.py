"""Submit stages, and keep a record of what was submitted: ids, commands, run folders, scripts, logs.

Each submission has a folder of its own below `cluster.folder`. The record is what `diffprobe jobs` reads, and what
refuses a second submission of a run that is still in the queue; a job that SLURM no longer has does not count.
"""

import fcntl
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diffprobe.config.cluster import ClusterConfig
from diffprobe.config.parse import parse, to_tree
from diffprobe.core.artifact import read_json, write_artifact
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.core.json_file import expect
from diffprobe.launch import slurm
from diffprobe.launch.plan import Stage, Task, stage_of, stage_tree
from diffprobe.launch.sbatch import job_name, render

RECORD = "submission.json"
_KIND, _SCHEMA_VERSION = "submission", 1
_LOCK_SECONDS = 120


@dataclass(frozen=True, kw_only=True)
class SubmittedTask:
    """One task of a submission, with the places of its files."""

    submission: "Submission"
    stage: Stage
    index: int
    """Number of the task in its stage, from 0."""
    job: str
    """Id of the job, or of the task of an array: 17, 17_3."""

    @property
    def task(self) -> Task:
        """The command and its folder."""
        return self.stage.tasks[self.index]

    @property
    def name(self) -> str:
        """Name of the job in SLURM."""
        return job_name(self.submission.name, self.stage)

    def file(self, suffix: str) -> Path:
        """Return a file of the task: `.status` (exit status) or `.progress.json` (heartbeat)."""
        return self.submission.folder / f"{self.stage.name}-{self.index}{suffix}"

    @property
    def log(self) -> Path:
        """What the task prints."""
        return self.submission.folder / f"{self.stage.name}-{self.job}.log"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What one call of `diffprobe submit` submitted."""

    folder: Path
    """Its folder, absolute."""
    created_at: str
    """Time, ISO 8601, UTC."""
    command: tuple[str, ...]
    """What was given after `diffprobe submit`."""
    workdir: Path
    """Folder in which the command was given, and in which the jobs run."""
    cluster_name: str
    cluster: ClusterConfig
    array_limit: int | None
    stages: tuple[Stage, ...]
    jobs: dict[str, str]
    """Name of a stage -> id of its job."""

    @property
    def name(self) -> str:
        """Name of the submission."""
        return self.folder.name

    @property
    def seconds(self) -> float:
        """Time of the submission in seconds since 1970; 0 where the record has no time."""
        try:
            return datetime.fromisoformat(self.created_at).timestamp()
        except ValueError:
            return 0.0

    def tasks(self) -> Iterator[SubmittedTask]:
        """Yield the tasks of all stages that have a job."""
        for stage in self.stages:
            job = self.jobs.get(stage.name)
            if job is not None:
                for i in range(len(stage.tasks)):
                    number = f"{job}_{i}" if len(stage.tasks) > 1 else job
                    yield SubmittedTask(submission=self, stage=stage, index=i, job=number)

    def script(self, stage: Stage) -> str:
        """Return the batch script of a stage."""
        return render(
            stage,
            self.cluster,
            cluster_name=self.cluster_name,
            submission=self.name,
            folder=self.folder,
            workdir=self.workdir,
            array_limit=self.array_limit,
        )

    def write(self) -> None:
        """Write the record."""
        body = {
            "created_at": self.created_at,
            "command": list(self.command),
            "workdir": str(self.workdir),
            "cluster_name": self.cluster_name,
            "cluster": to_tree(self.cluster),
            "array_limit": self.array_limit,
            "stages": [stage_tree(stage) for stage in self.stages],
            "jobs": self.jobs,
        }
        write_artifact(self.folder / RECORD, body, kind=_KIND, schema_version=_SCHEMA_VERSION)


def new_submission(
    stages: Sequence[Stage],
    cluster: ClusterConfig,
    *,
    cluster_name: str,
    command: Sequence[str],
    label: str,
    workdir: Path,
    array_limit: int | None = None,
) -> Submission:
    """Return a submission that is not submitted or written yet, with a folder that nothing else has.

    Args:
        label: what it is about, for its name: emoji/sae.
        array_limit: most tasks of an array at once; None: that of the cluster.
    """
    now = datetime.now(UTC)
    word = re.sub(r"[^\w.-]+", ".", label)[:40].strip(".") or "job"
    name = f"{now:%m%d-%H%M%S}-{word}-{secrets.token_hex(2)}"
    return Submission(
        folder=(workdir / cluster.folder).resolve() / name,
        created_at=now.isoformat(timespec="seconds"),
        command=tuple(command),
        workdir=workdir,
        cluster_name=cluster_name,
        cluster=cluster,
        array_limit=array_limit,
        stages=tuple(stages),
        jobs={},
    )


def send(planned: Submission) -> Submission:
    """Write the scripts and submit them in order; each stage waits for those that it names.

    Returns: the submission with the ids of its jobs.
    Raises: RunFailed with SLURM's own words; the stages that it had already accepted are cancelled then.
    """
    planned.folder.mkdir(parents=True)
    jobs: dict[str, str] = {}
    try:
        for stage in planned.stages:
            script = planned.folder / f"{stage.name}.sbatch"
            with atomic_file(script) as temporary:
                temporary.write_text(planned.script(stage), encoding="utf-8")
            waits = [*(jobs[name] for name in stage.after), *stage.after_jobs]
            options = [f"--dependency=afterok:{':'.join(waits)}", "--kill-on-invalid-dep=yes"] if waits else []
            jobs[stage.name] = slurm.submit(script, *options)
            replace(planned, jobs=dict(jobs)).write()
    except BaseException as error:
        undone = _cancelled(jobs)
        shutil.rmtree(planned.folder, ignore_errors=True)
        if isinstance(error, RunFailed):
            raise RunFailed(error.what, *error.details, undone, fix=error.fix) from error
        raise
    return replace(planned, jobs=jobs)


def _cancelled(jobs: Mapping[str, str]) -> str:
    try:
        slurm.cancel(jobs.values())
    except DiffprobeError as error:
        return f"already submitted, and not cancelled ({error.what}): {', '.join(jobs.values())}"
    return f"cancelled again: {', '.join(jobs.values())}" if jobs else "nothing was submitted"


def read_submissions(folder: Path) -> list[Submission]:
    """Return the submissions in a folder, oldest first; none if it does not exist. Raises: SchemaError."""
    paths = sorted(folder.glob(f"*/{RECORD}"))
    return sorted((_read(path) for path in paths), key=lambda found: (found.created_at, found.name))


def _read(path: Path) -> Submission:
    where = f"'{path}'"
    fix = f"remove the folder '{path.parent}'; jobs that run are not touched by that"
    tree = read_json(path, kind=_KIND, schema_version=_SCHEMA_VERSION, remake=fix)

    def text(name: str) -> str:
        return expect(tree.get(name), str, where=f"{where}, {name}")

    stages = [expect(one, dict, where=f"{where}, stages") for one in expect(tree["stages"], list, where=where)]
    jobs: dict[str, Any] = expect(tree.get("jobs"), dict, where=f"{where}, jobs")
    limit = tree.get("array_limit")
    return Submission(
        folder=path.parent.resolve(),
        created_at=text("created_at"),
        command=tuple(str(word) for word in expect(tree.get("command"), list, where=f"{where}, command")),
        workdir=Path(text("workdir")),
        cluster_name=text("cluster_name"),
        cluster=parse(ClusterConfig, expect(tree.get("cluster"), dict, where=f"{where}, cluster"), at="cluster"),
        array_limit=None if limit is None else expect(limit, int, where=f"{where}, array_limit"),
        stages=tuple(stage_of(stage, where) for stage in stages),
        jobs={name: str(job) for name, job in jobs.items()},
    )


def active_tasks(folder: Path, queue: Mapping[str, slurm.QueuedJob] | None = None) -> dict[str, SubmittedTask]:
    """Return what is submitted and still in the queue, by the work of the task. Raises: RunFailed of squeue.

    Args:
        folder: the folder of the submissions.
        queue: what squeue shows; None to ask it, if anything was submitted at all.
    """
    submissions = read_submissions(folder)
    if queue is None:
        queue = slurm.queue() if submissions else {}
    found = {}
    for submission in submissions:
        for task in submission.tasks():
            if is_queued(task, queue):
                found[task.task.work] = task
    return found


def is_queued(task: SubmittedTask, queue: Mapping[str, slurm.QueuedJob]) -> bool:
    """Return whether SLURM has a task in its queue; an equal id with another name is another job."""
    known = queue.get(task.job)
    return known is not None and known.name == task.name


@contextmanager
def submission_lock(folder: Path) -> Iterator[None]:
    """Let one process at a time look at a folder of submissions and add to it.

    Raises: RunFailed where another process holds the lock for long. On a file system without locks nothing is locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > end:
                    raise RunFailed(f"another `diffprobe submit` has used '{folder}' for {_LOCK_SECONDS} s.") from error
                time.sleep(0.1)
            except OSError:  # no locks here
                break
        yield
