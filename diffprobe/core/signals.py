"""SIGTERM as an exception, so that a cluster's end of a job unwinds like Ctrl-C and has the exit status of its signal.

Without a handler the process would die in the middle of whatever it writes and say nothing; Lightning's own handler
lets the program end with status 0. Standard library only.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

TERMINATED, INTERRUPTED = 143, 130
"""Exit statuses of a process that ends by SIGTERM and by Ctrl-C: 128 plus the number of the signal."""

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


def take_sigterm() -> None:
    """Make `terminate` the handler of SIGTERM, unless this process was started to ignore it, or in another thread."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
        signal.signal(signal.SIGTERM, terminate)


@contextmanager
def end_on_sigterm() -> Iterator[None]:
    """Raise `Terminated` in a block when SIGTERM arrives, at its end at the latest. Blocks may be nested.

    An exception that arrives in a destructor or a callback of a library is lost there; so the end of the block raises
    it again.
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
    finally:
        _blocks.pop()
        if outermost:
            _received.clear()
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGTERM, before)
