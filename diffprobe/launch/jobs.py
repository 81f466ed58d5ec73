"""What became of submitted tasks: state, progress, time left, last line of the log, and heartbeats that stopped.

SLURM's queue counts first; for what has left it, the result of the run and the exit status that the script noted.
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from diffprobe.core import errors
from diffprobe.core.errors import RunFailed, unknown
from diffprobe.core.heartbeat import Progress, read_progress
from diffprobe.core.result import RESULT_FILE
from diffprobe.core.signals import INTERRUPTED, TERMINATED
from diffprobe.core.terminal import one_line
from diffprobe.launch import slurm
from diffprobe.launch.plan import Stage, narrowed
from diffprobe.launch.submission import Submission, SubmittedTask, is_queued, read_submissions

FINISHED = "finished"
_TAIL_BYTES = 64 * 1024
_ERRORS = "|".join(name for name, one in vars(errors).items() if isinstance(one, type) and issubclass(one, Exception))
_ERROR = re.compile(rf"({_ERRORS}|[\w.]*(Error|Exception)): ")
"""The first line of an error in a log."""


@dataclass(frozen=True, kw_only=True)
class TaskState:
    """One task as `diffprobe jobs` shows it."""

    task: SubmittedTask
    state: str
    """pending, running, ... of SLURM in lower case; finished, failed, cancelled, or gone (SLURM has forgotten it)."""
    reason: str
    """Why it waits, or how it ended."""
    elapsed: str
    """Time in this start, as SLURM writes it."""
    progress: Progress | None
    stale: bool
    """Whether the task runs and its heartbeat has stopped."""
    last_line: str
    """The last line of the log; of a failed task the last that names an error, if one does."""

    def tree(self) -> dict[str, Any]:
        """Return the state as JSON holds it."""
        return {
            "job": self.task.job,
            "submission": self.task.submission.name,
            "stage": self.task.stage.name,
            "command": list(self.task.task.command),
            "run_folder": self.task.task.run_folder,
            "state": self.state,
            "reason": self.reason,
            "elapsed": self.elapsed,
            "progress": None if self.progress is None else asdict(self.progress),
            "stale": self.stale,
            "log": str(self.task.log),
            "last_line": self.last_line,
        }


def task_states(folder: Path, *, days: float | None = None, now: float | None = None) -> list[TaskState]:
    """Return the state of what was submitted from a folder, oldest first.

    Args:
        folder: the folder of the submissions.
        days: leave out older submissions of which nothing is in the queue; None for all.
        now: seconds since 1970; None for the clock.

    Raises: RunFailed of squeue, SchemaError of a record.
    """
    submissions = read_submissions(folder)
    queue = slurm.queue() if submissions else {}
    first = None if days is None else (time.time() if now is None else now) - days * 86400
    return [
        state_of(task, queue, now=now)
        for found in submissions
        if first is None or found.seconds >= first or any(is_queued(task, queue) for task in found.tasks())
        for task in found.tasks()
    ]


def state_of(task: SubmittedTask, queue: Mapping[str, slurm.QueuedJob], *, now: float | None = None) -> TaskState:
    """Return the state of one task."""
    queued = queue[task.job] if is_queued(task, queue) else None
    progress = read_progress(task.file(".progress.json"))
    if queued is not None:
        state, reason, elapsed = queued.state.lower(), queued.reason, queued.elapsed
    else:
        (state, reason), elapsed = _ended(task), ""
    stale = state == "running" and progress is not None and progress.is_stale(time.time() if now is None else now)
    return TaskState(
        task=task,
        state=state,
        reason="" if reason == "None" else reason,
        elapsed=elapsed,
        progress=progress,
        stale=stale,
        last_line=_shown_line(task.log, failed=state == "failed"),
    )


def is_finished(task: SubmittedTask) -> bool:
    """Return whether a task has left its result, or ended with status 0."""
    folder = task.task.run_folder
    return _status(task) == 0 if folder is None else (Path(folder) / RESULT_FILE).is_file()


def _ended(task: SubmittedTask) -> tuple[str, str]:
    status = _status(task)
    if is_finished(task):
        return FINISHED, ""
    known = slurm.describe(task.job)
    if known.get("JobName") == task.name and known.get("JobState") in (
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
        "PREEMPTED",
    ):
        return known["JobState"].lower(), known.get("Reason", "")
    if status is not None:
        return "failed", {TERMINATED: "ended by SIGTERM", INTERRUPTED: "interrupted"}.get(status, f"status {status}")
    if known.get("JobName") == task.name:
        return known.get("JobState", "unknown").lower(), known.get("Reason", "")
    return "gone", "no exit status, and SLURM has forgotten it"


def _status(task: SubmittedTask) -> int | None:
    try:
        text = task.file(".status").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _shown_line(log: Path, *, failed: bool) -> str:
    """Return the last line of a log; of a failed job the last that names an error, before SLURM's own words."""
    lines = last_lines(log, 50 if failed else 1)
    named = [line for line in lines if failed and _ERROR.match(line)]
    return (named or lines or [""])[-1]


def last_lines(log: Path, n: int) -> list[str]:
    """Return the last non-empty lines of a log, with control characters escaped; an empty list without a log."""
    try:
        with open(log, "rb") as file:
            file.seek(0, 2)
            file.seek(max(file.tell() - _TAIL_BYTES, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]  # of a progress bar its last state
    return [one_line(line) for line in lines if line.strip()][-n:]


def chosen(folder: Path, names: Sequence[str]) -> list[SubmittedTask]:
    """Return the tasks that ids or names of submissions stand for; the id of an array stands for all its tasks.

    Raises: RunFailed if nothing was submitted; UnknownName with the nearest ids.
    """
    submissions = read_submissions(folder)
    if not submissions:
        raise RunFailed(f"nothing was submitted from '{folder}'.", fix="diffprobe submit ...; or --folder DIR")
    tasks = [task for submission in submissions for task in submission.tasks()]
    found: dict[tuple[str, str], SubmittedTask] = {}
    for name in names:
        fitting = [one for one in tasks if name in (one.job, one.job.partition("_")[0], one.submission.name)]
        if not fitting:
            known = {word for one in tasks for word in (one.job, one.submission.name)}
            raise unknown("job", name, known)
        if name not in {one.submission.name for one in fitting}:  # SLURM may have counted from the start again
            newest = fitting[-1].submission.name
            fitting = [one for one in fitting if one.submission.name == newest]
        found |= {(one.submission.name, one.job): one for one in fitting}
    return list(found.values())


def unfinished(submission: Submission, tasks: Sequence[SubmittedTask]) -> list[Stage]:
    """Return the stages of a submission with those of the given tasks that are not finished; empty stages left out.

    A stage waits only for stages that are left.
    """
    wanted = [one for one in tasks if one.submission.name == submission.name and not is_finished(one)]
    stages = [narrowed(s, [o.task for o in wanted if o.stage.name == s.name]) for s in submission.stages]
    left = {stage.name for stage in stages if stage.tasks}
    return [
        replace(stage, after=tuple(name for name in stage.after if name in left), after_jobs=())
        for stage in stages
        if stage.tasks
    ]
