"""Memory of the process: one setting of the C library's allocator, and the free memory."""

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

# Names and numbers of mallopt(3), glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the next tensor instead of returning it to the kernel.

    Otherwise every large tensor is mapped and cleared again at each step, and on a virtual machine the page faults cost
    more than the arithmetic. Peak memory does not change. Call it before the first large tensor.

    Returns: whether the settings were applied; False (and no effect) without glibc.
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
    """Return the bytes that this process can still allocate; None where unknown (not Linux).

    This is the kernel's available memory (with reclaimable page cache), or the rest of the limit of the process's
    control groups (a container, a batch job) if that is less.

    Args:
        root: folder of /proc and /sys.
    """
    try:
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    return min([free, *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Yield the free bytes of each control group (version 2) with a limit, from the process's own outwards."""
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
        except (OSError, ValueError):  # the outermost group has no such file, and "max" is not a limit
            continue
        yield max(limit - taken + int(stat.get("inactive_file", 0)), 0)
