"""Write files that a kill, a full disk or a power cut leaves whole: either the old content or all of the new.

The new content is written beside the target, so that the rename stays within one file system; TMPDIR often is another
one. Standard library only.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of unfinished files; their names begin with a dot."""


@contextmanager
def atomic_file(path: Path | str) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends, that file replaces `path`.

    The file is flushed to the disk, gets the permissions of new files (umask), replaces the target in one step, and
    the folder is flushed. If the block raises, the target stays as it was and the temporary file is removed.

    >>> with atomic_file("weights.bin") as temporary:  # doctest: +SKIP
    ...     temporary.write_bytes(data)

    Raises: OSError, for example on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        yield temporary
        flush_file(temporary)
        os.chmod(temporary, 0o666 & ~current_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_file(path: Path | str) -> None:
    """Wait until the content of a file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def flush_folder(folder: Path | str) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError:  # some network file systems refuse it for folders
        pass
    finally:
        os.close(handle)


def current_umask() -> int:
    """Return the permissions that new files lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
