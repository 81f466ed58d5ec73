"""One error for whatever a library raises over a file that others wrote. Standard library only."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffprobe.core.errors import DiffprobeError, WeightsMismatch


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
