"""The client of SLURM: sbatch, squeue, scontrol and scancel, with SLURM's own words in every error."""

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffprobe.core.errors import RunFailed

TIMEOUT = 60
"""Seconds that one call may take; a controller that does not answer makes its clients wait."""
_JOB = re.compile(r"\d+(_\d+)?", re.ASCII)
_FIELDS = "%i|%j|%T|%M|%L|%r"


@dataclass(frozen=True)
class QueuedJob:
    """A job, or a task of an array, that SLURM has in its queue.

    Attributes:
        job: its id, 17 or 17_3.
        name: name of the job.
        state: PENDING, RUNNING, COMPLETING, ...
        elapsed: time that it has run, as SLURM writes it.
        left: time until its limit, as SLURM writes it.
        reason: why it waits; None or "None" while it runs.
    """

    job: str
    name: str
    state: str
    elapsed: str
    left: str
    reason: str


def installed() -> bool:
    """Return whether sbatch is on the path."""
    return shutil.which("sbatch") is not None


def require_sbatch(locally: str) -> None:
    """Check that jobs can be submitted here. Raises: RunFailed, which names the command that runs here without SLURM.

    Args:
        locally: that command.
    """
    if not installed():
        raise RunFailed(
            "sbatch was not found: this machine cannot submit jobs to SLURM.",
            "--dry-run shows the scripts without it",
            fix=f"on a login node of the cluster; or run it here: {locally}",
        )


def submit(script: Path, *options: str) -> str:
    """Submit a script and return the id of its job. Raises: RunFailed with SLURM's own words."""
    done = call("sbatch", "--parsable", *options, str(script))
    job = done.strip().split(";")[0]  # ID;CLUSTER in a federation
    if not _JOB.fullmatch(job):
        raise RunFailed(f"sbatch did not print the id of a job: {done.strip()[:200]!r}.")
    return job


def queue() -> dict[str, QueuedJob]:
    """Return the user's jobs in the queue by id, each task of an array on its own. Raises: RunFailed."""
    import getpass

    found = {}
    for line in call(
        "squeue", "--noheader", "--array", f"--user={getpass.getuser()}", f"--format={_FIELDS}"
    ).splitlines():
        parts = line.strip().split("|")
        if len(parts) == 6 and _JOB.fullmatch(parts[0]):
            found[parts[0]] = QueuedJob(*parts)
    return found


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs or tasks. Raises: RunFailed."""
    named = list(jobs)
    if named:
        call("scancel", *named)


def describe(job: str) -> dict[str, str]:
    """Return what scontrol still knows about a job: JobState, Reason, ExitCode, ...; empty once it has forgotten it."""
    try:
        text = call("scontrol", "show", "job", "--oneliner", job)
    except RunFailed:
        return {}
    last = text.strip().splitlines()[-1] if text.strip() else ""
    return dict(re.findall(r"(\w+)=(\S*)", last))


def call(program: str, *arguments: str) -> str:
    """Run a program of SLURM and return what it prints. Raises: RunFailed with its stderr."""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except FileNotFoundError as error:
        raise RunFailed(f"{program} was not found: SLURM is not installed here.", fix="on a login node") from error
    except subprocess.TimeoutExpired as error:
        raise RunFailed(f"{program} did not answer within {TIMEOUT} s.", fix="is the controller up? sinfo") from error
    if done.returncode:
        raise RunFailed(f"{program} failed: {_first(done.stderr, done.returncode)}", *_lines(done.stderr)[1:])
    return done.stdout


def _lines(text: str) -> Sequence[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _first(text: str, status: int) -> str:
    lines = _lines(text)
    return lines[0] if lines else f"status {status}, no message"
