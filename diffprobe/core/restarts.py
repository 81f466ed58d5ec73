"""Starts of one job of a cluster: whether this is one of several, and whether they still make progress.

A job that is preempted, or that a fault ends in the same place each time, could go through the queue for ever. The
record of its starts lets it stop, with the reason.
"""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from diffprobe.core.artifact import write_json_atomic
from diffprobe.core.errors import DiffprobeError, RunFailed
from diffprobe.core.json_file import expect, read_json_object

RECORD = "restarts.json"
VARIABLE = "DIFFPROBE_MAX_RESTARTS"
DEFAULT = 3
"""Restarts without progress after which a job stops."""
_CLOCKS = 5.0
"""Seconds by which the clock of a file server may be behind that of a node."""


def job_id(environ: Mapping[str, str] | None = None) -> str | None:
    """Return the id of this job, or of this task of an array; None outside of SLURM."""
    known = os.environ if environ is None else environ
    array, task = known.get("SLURM_ARRAY_JOB_ID"), known.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else known.get("SLURM_JOB_ID")


def is_restart(environ: Mapping[str, str] | None = None) -> bool:
    """Return whether SLURM has started this job before: after a requeue, a preemption or a failed node."""
    known = os.environ if environ is None else environ
    return known.get("SLURM_RESTART_COUNT", "0") not in ("", "0")


def written_by_this_job(record: Path, file: Path, environ: Mapping[str, str] | None = None) -> bool:
    """Return whether an earlier start of this job has written a file of the run: its result, or a checkpoint.

    Args:
        record: the record of starts.
        file: the file; one that is older than the first start is of another job.
    """
    job = job_id(environ)
    known, first, _ = _read(record)
    if not is_restart(environ) or job is None or job != known:
        return False
    try:
        return file.stat().st_mtime >= first - _CLOCKS
    except OSError:
        return False


def note_start(record: Path, progress: int, environ: Mapping[str, str] | None = None) -> None:
    """Record a start of this job; call it once per start, on the main process. Does nothing outside of SLURM.

    Args:
        record: the record; that of another job is replaced.
        progress: a number that grows with the work that is done: steps, shards.

    Raises: RunFailed where this is a restart and as many restarts as $DIFFPROBE_MAX_RESTARTS (3) made no progress.
    """
    known = os.environ if environ is None else environ
    job = job_id(known)
    if job is None:
        return
    before, first, starts = _read(record)
    if before == job and is_restart(known):
        starts = [*starts, progress]
    else:
        first, starts = time.time(), [progress]
    text = known.get(VARIABLE, "")
    limit = int(text) if text.isdecimal() and int(text) else DEFAULT
    stuck = len(starts) > limit and len(set(starts[-limit - 1 :])) == 1
    record.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(record, {"job": job, "first": first, "starts": starts})
    if stuck:
        raise RunFailed(
            f"job {job} was restarted {limit} times without progress: each start found {progress} done.",
            "it does not go into the queue again",
            fix="read its log; a longer cluster.time, or a smaller trainer.checkpoint_every_steps",
        )


def _read(record: Path) -> tuple[str | None, float, list[int]]:
    """Return the job of a record, the time of its first start in seconds since 1970, and the progress of each start."""
    try:
        tree = read_json_object(record)
        starts = expect(tree.get("starts"), list, where=f"'{record}', starts")
        return (
            expect(tree.get("job"), str, where=f"'{record}', job"),
            expect(tree.get("first"), float, where=f"'{record}', first"),
            [expect(one, int, where=f"'{record}', starts") for one in starts],
        )
    except (OSError, DiffprobeError):  # none yet, or damaged: counting begins anew
        return None, 0.0, []
