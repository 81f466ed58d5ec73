"""Requeueing under SLURM: at a signal the run saves a checkpoint between two steps, and its job starts again later.

`sbatch --signal=USR1@90` sends SIGUSR1 before the time limit, and where the cluster is set up so, before a preemption:
the job goes back into the queue. SIGTERM ends a job (preemption, scancel): the run saves and ends, and a preempted job
goes back into the queue. Lightning would save within its signal handler, in the middle of a step, to a file of its own
that later evaluations load; here the handlers only take a note.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType

from diffprobe.core.processes import is_main_process
from diffprobe.core.restarts import job_id
from diffprobe.core.signals import Terminated, end_behind, take_sigterm

_INTERACTIVE = ("bash", "interactive")
"""Names of jobs in which somebody sits at a shell; their end is not a job's end."""
_NOT_TRAINING = "SIGUSR1: no training step is running, so a restart continues from what is on disk"
_PREEMPTED = "SIGTERM: the job is preempted"
_TIMEOUT = 10
"""Seconds in which scontrol has to answer."""


class Requeue:
    """Takes SIGUSR1 while a command lasts, and SIGTERM while training steps run; nothing outside of a SLURM job.

    A context manager; within another one, the inner one takes the signals.

    Args:
        environ: the variables of the process.

    Attributes:
        asked: whether SIGUSR1 has arrived during the training steps, and no checkpoint has been saved for it.
        ending: whether SIGTERM has arrived during the training steps.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._before: Callable[[int, FrameType | None], object] | int | None = None
        self.asked = self.ending = self._steps = self._requeued = False

    @property
    def applies(self) -> bool:
        """Whether the process belongs to a batch job of SLURM."""
        return "SLURM_JOB_ID" in self._environ and self._environ.get("SLURM_JOB_NAME") not in _INTERACTIVE

    def __enter__(self) -> "Requeue":
        if self.applies and hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
            found = signal.getsignal(signal.SIGUSR1)
            if found in (None, signal.SIG_DFL) or isinstance(getattr(found, "__self__", None), Requeue):
                self._before = found or signal.SIG_DFL  # a handler of somebody else is kept
                signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            outermost = not isinstance(getattr(self._before, "__self__", None), Requeue)
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None
            ended = isinstance(end_behind(error), Terminated)
            if outermost and not self._requeued and ended and self._is_preempted():
                self.submit(_PREEMPTED)

    def _is_preempted(self) -> bool:
        """Return whether the job ends to make room for another; a job that ends by itself then is not requeued."""
        if not is_main_process(self._environ):
            return False
        try:
            command = ["scontrol", "show", "job", "--oneliner", self._job()]
            text = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT).stdout
        except (OSError, subprocess.TimeoutExpired):
            return False
        known = dict(re.findall(r"(JobState|PreemptTime)=(\S+)", text))
        return known.get("JobState") == "RUNNING" and known.get("PreemptTime", "None") not in ("None", "Unknown")

    @property
    def in_steps(self) -> bool:
        """Whether training steps run, between which signals are answered."""
        return self._steps

    def begin_steps(self) -> None:
        """Note that training steps run from now on: a signal waits for the end of one and for a checkpoint."""
        self._steps = True
        if self.applies and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def end_steps(self) -> None:
        """Note that no more steps run: a restart continues from the last checkpoint, if there is one.

        Raises: Terminated if SIGTERM arrived after the last step.
        """
        self._steps = False
        take_sigterm()
        if self.asked:
            self.submit(_NOT_TRAINING)
        if self.ending:
            raise Terminated

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._steps:
            self.submit(_NOT_TRAINING)

    def _on_sigterm(self, signum: int, frame: FrameType | None) -> None:
        self.ending = True

    def submit(self, saved: str) -> bool:
        """Requeue the job, on the main process only.

        Args:
            saved: what a restart continues from, for the line that is printed.

        Returns: whether the job is in the queue again, so that SLURM ends this start of it.
        """
        self.asked = False
        if not is_main_process(self._environ):
            return False
        job = self._job()
        try:
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
            cause = " ".join(done.stderr.split()) or f"status {done.returncode}"
            requeued = done.returncode == 0
            outcome = f"job {job} is requeued" if requeued else f"job {job} is not requeued ({cause})"
        except OSError as error:
            requeued, outcome = False, f"job {job} is not requeued (scontrol: {error.strerror})"
        goes_on = "" if requeued else "; the run goes on until the job ends"
        print(f"{saved}; {outcome}{goes_on}.", file=sys.stderr, flush=True)
        self._requeued |= requeued
        return requeued

    def _job(self) -> str:
        """Return the id of the job, or of the task of a job array."""
        job = job_id(self._environ) or ""
        return job if re.fullmatch(r"[0-9_-]+", job) else "(invalid id)"
