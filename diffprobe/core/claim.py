"""Names that belong to one living process: random, and locked while the process works under them.

A host name and a process number do not identify a process: containers may share the one and have equal ones of the
other. Here a name is random, and whoever can take its lock (flock) knows that its process has ended. On another machine
a lock may not be visible, and some file systems have none; there, names are never taken for abandoned. Standard library
only.
"""

import errno
import fcntl
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

LOCK = ".lock"
"""Suffix of lock files; the name of a claim plus this suffix, in the same folder."""
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
_UNLOCKED = "no locks"
_log = logging.getLogger(__name__)


@contextmanager
def claim(folder: Path, prefix: str) -> Iterator[str]:
    """Give a name in `folder` that no other process has, locked until the block ends.

    The name is `prefix` and 16 random digits. It is free for a file or folder of the caller, who removes it.

    Raises: OSError, for example on a full disk.
    """
    name, handle = _create(folder, prefix)
    try:
        yield name
    finally:
        (folder / f"{name}{LOCK}").unlink(missing_ok=True)
        os.close(handle)


@contextmanager
def abandoned(folder: Path, prefix: str) -> Iterator[list[str]]:
    """Give the names in `folder` whose processes have ended on this machine; they are locked while the block runs.

    The caller removes what is under these names; the lock files are removed when the block ends.
    """
    found = {}
    try:
        for file in sorted(folder.glob(f"{prefix}*{LOCK}")):
            handle = _take(file)
            if handle is not None:
                found[file] = handle
        yield [file.name.removesuffix(LOCK) for file in found]
        for file in found:
            file.unlink(missing_ok=True)
    finally:
        for handle in found.values():
            os.close(handle)


def _create(folder: Path, prefix: str) -> tuple[str, int]:
    while True:
        name = f"{prefix}{secrets.token_hex(8)}"
        file = folder / f"{name}{LOCK}"
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            owner = _machine() if _lock(handle, folder) else _UNLOCKED
            if os.stat(file).st_ino == os.fstat(handle).st_ino:
                os.write(handle, owner.encode())
                return name, handle
        except (BlockingIOError, FileNotFoundError):  # taken for abandoned between the two calls: another name
            pass
        except BaseException:
            os.close(handle)
            file.unlink(missing_ok=True)
            raise
        os.close(handle)


def _lock(handle: int, folder: Path) -> bool:
    """Lock an open file; False if the file system has no locks. Raises: BlockingIOError if it is locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _warn_once(str(folder))
        return False
    return True


def _take(file: Path) -> int | None:
    """Lock the lock file of another process if that has ended on this machine, and return its handle."""
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:  # removed, or of another user
        return None
    try:
        if os.read(handle, 200).decode(errors="replace") == _machine():
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
    except OSError:  # its process is alive
        pass
    os.close(handle)
    return None


@cache
def _machine() -> str:
    """Return an identity of the running kernel, which all containers of a machine share."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux
        return f"host {socket.gethostname()}"


@cache
def _warn_once(folder: str) -> None:
    _log.warning(
        "the file system of '%s' has no locks: what a killed process leaves behind is removed only when everything is "
        "written",
        folder,
    )
