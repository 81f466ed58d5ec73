"""SIGTERM as an exception, so that a cluster's end of a job unwinds like Ctrl-C and has the exit status of its signal.

Without a handler the process would die in the middle of whatever it writes and say nothing; Lightning's own handler
lets the program end with status 0. Standard library only.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED, INTERRUPTED = 143, 130
"""Exit statuses of a process that ends by SIGTERM and by Ctrl-C: 128 plus the number of the signal."""

_WORKER_SECONDS = 60
"""Seconds that a loader's worker goes on after SIGTERM."""
_received = threading.Event()
_blocks: list[bool] = []


class Terminated(SystemExit):
    """Raised in the main thread when SIGTERM arrives; where nothing catches it, the process ends with status 143."""

    def __init__(self) -> None:
        super().__init__(TERMINATED)


def terminate(signum: int, frame: FrameType | None) -> None:
    """Handle SIGTERM: raise `Terminated`, once. Launchers send it twice, and the second would stop the cleaning up."""
    if not _received.is_set():
        _received.set()
        raise Terminated


def end_behind(error: BaseException | None) -> Terminated | KeyboardInterrupt | None:
    """Return a new exception for the end of the process that an error hides; None for an error of its own.

    Code of a library that is stopped halfway may fail in its `finally`, and that error takes the place of the end.
    """
    if _received.is_set():
        return Terminated()
    while error is not None:
        if isinstance(error, Terminated | KeyboardInterrupt):
            return type(error)()
        error = error.__context__
    return None


def take_sigterm() -> None:
    """Make `terminate` the handler of SIGTERM, unless this process was started to ignore it, or in another thread."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, terminate)


@contextmanager
def end_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in a block when SIGTERM arrives, at its end at the latest. Blocks may be nested.

    An exception that arrives in a destructor or a callback of a library is lost there; so the end of the block raises
    it again. An error that hides `Terminated` or KeyboardInterrupt gives way to it (`end_behind`).
    """
    before, outermost = signal.getsignal(signal.SIGTERM), not _blocks
    if outermost:
        _received.clear()
    _blocks.append(True)
    take_sigterm()
    try:
        yield
        if _received.is_set():
            raise Terminated
    except Exception as error:
        end = end_behind(error)
        if end is not None:
            raise end from error
        raise
    finally:
        _blocks.pop()
        if outermost:
            _received.clear()
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)


def shield_worker(worker: int = 0) -> None:
    """Prepare a loader's worker for the signals of SLURM, which reach all processes of a job: `worker_init_fn`.

    SIGUSR1 is the main process's, and would end a worker. SIGTERM ends a worker of a job only after a while, so that
    the main process can finish its step with the samples that the worker still has to give, and save.
    """
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if "SLURM_JOB_ID" in os.environ:
        signal.signal(signal.SIGTERM, _end_later)


def _end_later(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_WORKER_SECONDS)
