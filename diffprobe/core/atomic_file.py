"""Write files that a kill, a full disk or a power cut leaves whole: either the old content or all of the new.

The new content is written beside the target, so that the rename stays within one file system; TMPDIR often is another
one. Standard library only.
"""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY = ".tmp"
"""Suffix of unfinished files; their names begin with a dot."""
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}" + re.escape(TEMPORARY))


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
    temporary = _beside(path)
    try:
        yield temporary
        flush_file(temporary)
        open_to_readers(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Give a new folder beside `path`; when the block ends, it replaces `path` with all its files.

    The files are flushed to the disk and get the permissions of new files (umask). A folder cannot be replaced in one
    step: a kill between two renames leaves no folder `path`, and never one with files of both. If the block raises,
    the folder stays as it was.

    Raises: OSError, for example on a full disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = _beside(path), _beside(path)
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                flush_file(file)
            else:
                flush_folder(file)
        flush_folder(temporary)
        open_to_readers(temporary)
        if path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        if before.exists() and not path.exists():
            os.replace(before, path)
        raise
    flush_folder(path.parent)
    shutil.rmtree(before, ignore_errors=True)


def remove_unfinished(folder: Path | str) -> list[Path]:
    """Remove what killed processes have left of unfinished files and folders below `folder`, and return their paths.

    Only for folders that one process writes at a time.
    """
    found = sorted(path for path in Path(folder).rglob(f".*{TEMPORARY}") if _UNFINISHED.fullmatch(path.name))
    for path in found:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")


def open_to_readers(path: Path | str) -> None:
    """Set the permissions of a file, or of all files below a folder, to those of new files (umask).

    Some libraries (safetensors) write files that only the owner can read, but run folders are shared.
    """
    path, mode = Path(path), 0o666 & ~current_umask()
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            os.chmod(file, mode)


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
