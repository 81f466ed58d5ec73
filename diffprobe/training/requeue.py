"""Requeueing under SLURM: at SIGUSR1 the run saves a checkpoint between two steps and puts its job back in the queue.

`sbatch --signal=USR1@90` sends the signal before the time limit. Lightning would save within its signal handler, in the
middle of a step, to a file of its own that later evaluations load; here the handler only takes a note.
"""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType

from diffprobe.core.processes import is_main_process

_INTERACTIVE = ("bash", "interactive")
"""Names of jobs in which somebody sits at a shell; their end is not a job's end."""
_NOT_TRAINING = "no training step is running, so a restart continues from the last checkpoint"


class Requeue:
    """Takes SIGUSR1 while a run lasts, as a context manager; does nothing outside of a SLURM job.

    Args:
        environ: the variables of the process.

    Attributes:
        asked: whether the signal has arrived during the training steps, and no checkpoint has been saved for it.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._before: object = None
        self.asked = self._steps = False

    @property
    def applies(self) -> bool:
        """Whether the process belongs to a batch job of SLURM."""
        return "SLURM_JOB_ID" in self._environ and self._environ.get("SLURM_JOB_NAME") not in _INTERACTIVE

    def __enter__(self) -> "Requeue":
        if self.applies and hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGUSR1) in (None, signal.SIG_DFL):  # a handler of somebody else is kept
                self._before = signal.signal(signal.SIGUSR1, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, signal.SIG_DFL)
            self._before = None

    def begin_steps(self) -> None:
        """Note that training steps run from now on: the signal waits for the end of one and for a checkpoint."""
        self._steps = True

    def end_steps(self) -> None:
        """Note that no more steps run: a restart continues from the last checkpoint, if there is one."""
        self._steps = False
        if self.asked:
            self.submit(_NOT_TRAINING)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        if not self._steps:
            self.submit(_NOT_TRAINING)

    def submit(self, saved: str) -> None:
        """Requeue the job, on the main process only; the run goes on until SLURM ends it.

        Args:
            saved: what a restart continues from, for the line that is printed.
        """
        self.asked = False
        if not is_main_process(self._environ):
            return
        job = self._job()
        try:
            done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
            cause = " ".join(done.stderr.split()) or f"status {done.returncode}"
            outcome = f"job {job} is requeued" if done.returncode == 0 else f"job {job} is not requeued ({cause})"
        except OSError as error:
            outcome = f"job {job} is not requeued (scontrol: {error.strerror})"
        print(f"SIGUSR1: {saved}; {outcome}; training goes on until the job ends.", file=sys.stderr, flush=True)

    def _job(self) -> str:
        """Return the id of the job, or of the task of a job array."""
        array = self._environ.get("SLURM_ARRAY_JOB_ID")
        job = f"{array}_{self._environ.get('SLURM_ARRAY_TASK_ID', '')}" if array else self._environ["SLURM_JOB_ID"]
        return job if re.fullmatch(r"[0-9_-]+", job) else "(invalid id)"
