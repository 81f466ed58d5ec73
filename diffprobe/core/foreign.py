"""Files that others wrote: checks before they are opened, and one error for whatever a library raises over them.

Standard library only.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffprobe.core.errors import DiffprobeError, WeightsMismatch

_LFS = b"version https://git-lfs"


def require_regular_file(path: Path, *, error: type[DiffprobeError], fix: str | None = None) -> int:
    """Check that a path is a regular file, before it is opened: a pipe would wait for its writer without end.

    Args:
        error: class of the error that is raised.
        fix: the next step of the user, for the error message.
    Returns: its size in bytes.
    Raises: FileNotFoundError; `error` for a folder, pipe or device.
    """
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", str(path))
    if not path.is_file():
        raise error(f"'{path}' is not a regular file.", fix=fix)
    return path.stat().st_size


def refuse_lfs_pointer(begin: bytes, where: str, *, error: type[DiffprobeError], fix: str | None = None) -> None:
    """Refuse the text that git keeps in place of a large file. Raises: `error`.

    Args:
        begin: the first bytes of the file, or all of them.
        where: the file, for the error message.
        error: class of the error that is raised.
        fix: the next step of the user.
    """
    if begin.startswith(_LFS):
        raise error(
            f"{where} is a git-lfs pointer, not the file itself.", fix=fix or "git lfs pull, where it came from"
        )


@contextmanager
def naming(where: Path | str, what: str, *, error: type[DiffprobeError] = WeightsMismatch) -> Iterator[None]:
    """Turn whatever is raised inside into one error that names the file.

    Args:
        where: the file or folder.
        what: what it is not, for the message: "a configuration of UNet2DConditionModel".
        error: class of the error that is raised.
    Raises: `error`; errors of diffprobe, interruptions and exhausted memory pass.
    """
    try:
        yield
    except (DiffprobeError, MemoryError):
        raise
    except BaseException as cause:  # a panic of the Rust libraries is not an Exception
        if not isinstance(cause, Exception) and type(cause).__name__ != "PanicException":
            raise
        said = " ".join(str(cause).split())[:300]
        raise error(f"'{where}' is not {what}: {type(cause).__name__}: {said}") from cause
