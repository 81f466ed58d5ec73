"""Read files of a storage that vanishes for a while: try again with growing waits, up to a total patience.

A remount of NFS or Lustre makes files vanish for seconds to minutes. Only what a storage says of its own absence is
tried again; a refused permission, or content that is wrong, is not. Standard library only.
"""

import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, TypeVar

_log = logging.getLogger(__name__)
T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.25, 30.0
"""Seconds before the second attempt, and at most before any; each wait is twice the one before."""

_ABSENCE = frozenset(
    getattr(errno, name)
    for name in (
        "ENOENT", "ESTALE", "EIO", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "ENETUNREACH",
        "ENETRESET", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "ENODEV", "ENXIO", "EREMOTEIO", "ESHUTDOWN",
        "EAGAIN", "ENOLINK", "ECOMM",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""Numbers of the errors by which a network file system says that it is away."""


def is_absence(error: BaseException) -> bool:
    """Return whether an error says that the storage of a file is away, rather than what is wrong with the file.

    >>> is_absence(OSError(errno.ESTALE, "stale")), is_absence(PermissionError(errno.EACCES, "denied"))
    (True, False)
    """
    return isinstance(error, OSError) and error.errno in _ABSENCE


def cause(error: OSError) -> str:
    """Return the name and the text of an error of the system: "ESTALE: Stale file handle".

    >>> cause(OSError(errno.EIO, "Input/output error"))
    'EIO: Input/output error'
    """
    name = errno.errorcode.get(error.errno or 0, f"errno {error.errno}")
    return f"{name}: {error.strerror or os.strerror(error.errno or 0)}"


def short_read(found: int, expected: int) -> OSError:
    """Return the error for a file that ended before its size: a network file system may say so while it is away.

    Args:
        found, expected: bytes from the beginning of the file.
    """
    return OSError(errno.EIO, f"a read ended at byte {found:,} of {expected:,}")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long files of a vanished storage are tried again.

    Attributes:
        seconds: time from the first failure to the last attempt; 0 tries once.
        clock, sleep: seconds of a clock that never goes back, and the wait.
    """

    seconds: float = 0.0
    clock: Callable[[], float] = field(default=time.monotonic, repr=False, compare=False)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False, compare=False)


NO_PATIENCE = Patience()
"""Tries once."""


class Outage:
    """What is known of the absence of one file while it is read. Reports the beginning and the end, a line each.

    Args:
        patience: how long it is tried again.
        what: the file, for messages: "shard train-0001.tar".

    Attributes:
        tries: attempts that failed since the last progress.
    """

    def __init__(self, patience: Patience, what: str) -> None:
        self.patience, self.what, self.tries = patience, what, 0
        self._began = 0.0

    def wait(self, error: BaseException) -> bool:
        """Wait before the next attempt.

        Returns: False, without waiting, if the error is not of the storage, or the patience is over.
        """
        if self.patience.seconds <= 0 or not isinstance(error, OSError) or not is_absence(error):
            return False
        now = self.patience.clock()
        if not self.tries:
            self._began = now
            _log.warning("%s: %s; trying again for %g s more", self.what, cause(error), self.patience.seconds)
        self.tries += 1
        left = self._began + self.patience.seconds - now
        if left <= 0:
            return False
        self.patience.sleep(min(FIRST_WAIT * 2 ** min(self.tries - 1, 20), LONGEST_WAIT, left))
        return True

    def progress(self) -> None:
        """Note that the file was read further: the next failure begins a new outage."""
        if self.tries:
            _log.warning("%s: the storage is back after %s", self.what, self.described())
            self.tries = 0

    def described(self) -> str:
        """Return how long and how often it was tried: "12 s (7 attempts)"."""
        return f"{self.patience.clock() - self._began:.0f} s ({self.tries} attempts)"


def try_again(action: Callable[[], T], what: str, patience: Patience, failed: Callable[[OSError, str], Exception]) -> T:
    """Return the result of an action that reads a file, and try it again while the storage is away.

    Args:
        action: reads everything anew at each attempt.
        what: the file, for messages.
        failed: makes the error for the end of the patience, from the last error and "12 s (7 attempts)".

    Raises: what `failed` makes; errors of the action that are not of the storage, and all without patience.
    """
    outage = Outage(patience, what)
    while True:
        try:
            result = action()
        except OSError as error:
            if outage.wait(error):
                continue
            if not outage.tries or not is_absence(error):
                raise
            raise failed(error, outage.described()) from error
        outage.progress()
        return result


class WholeFile:
    """A file opened for reading whose end before its expected size is an error of the storage.

    Args:
        file: an open binary file, at its beginning.
        size: expected bytes; None accepts any end.
    """

    def __init__(self, file: BinaryIO, size: int | None) -> None:
        self._file, self._size = file, size

    def read(self, n: int = -1) -> bytes:
        """Return up to `n` bytes, all if negative. Raises: OSError (EIO) if the file ends before its size."""
        data = self._file.read(n)
        if self._size is not None and (n < 0 or len(data) < n) and (at := self._file.tell()) < self._size:
            raise short_read(at, self._size)
        return data

    def __getattr__(self, name: str) -> object:  # seek, tell, close: as they are
        return getattr(self._file, name)
