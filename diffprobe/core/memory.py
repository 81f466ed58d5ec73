"""How the process keeps memory. Owns one setting of the C library's allocator."""

import ctypes
import sys

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
