"""How the process keeps memory, and how much there is. Owns one setting of the C library's allocator."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

# Names and numbers of mallopt(3), glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory for the next tensor instead of giving it back to the kernel.

    Every large tensor is otherwise mapped and cleared anew at each step, and on a virtual machine the page faults cost
    more than the arithmetic. Peak memory stays as it is. Call it before the first large tensor.

    Returns: whether the C library took the settings; False where it is not glibc, which changes nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 * 2**20, _M_ARENA_MAX: 1}
    taken = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(taken)


def free_memory(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process may still take; None where the system does not tell (no Linux).

    It is what the kernel calls available, the page cache that it would give up included, or what the process's control
    groups (a container, a batch job) leave, where that is less.

    Args:
        root: where /proc and /sys are.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([free, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield what each control group of version 2 that has a limit leaves, from the process's own outwards."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return
    top = root / "sys/fs/cgroup"
    for folder in (top / own, *(top / parent for parent in Path(own).parents)):
        try:
            limit = int((folder / "memory.max").read_text())
            taken = int((folder / "memory.current").read_text())
            stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # there is no such file in the outermost group, and "max" is no limit
            continue
        yield max(limit - taken + int(stat.get("inactive_file", 0)), 0)
