import ctypes
import subprocess
import sys

import pytest

from diffprobe.core.memory import keep_freed_memory

# Resident memory does not fall when a large tensor goes: the C library keeps it.
PROBE = """
import sys, ctypes
from diffprobe.core.memory import keep_freed_memory
taken = keep_freed_memory() if sys.argv[1] == "keep" else False
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def pages():
    return int(open("/proc/self/statm").read().split()[1])
size, before = 2**26, pages()
block = libc.malloc(size)
ctypes.memset(block, 1, size)
libc.free(block)
print(taken, (pages() - before) * 4096 > size // 2)
"""


def is_glibc() -> bool:
    return sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


def probe(what: str) -> str:
    environment = {"PATH": "", "PYTHONPATH": ":".join(sys.path)}  # no setting of the allocator from outside
    command = [sys.executable, "-c", PROBE, what]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


@pytest.mark.skipif(not is_glibc(), reason="a setting of glibc")
def test_freed_memory_stays_with_the_process():
    assert probe("keep") == "True True"
    assert probe("leave") == "False False"


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
