import ctypes
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from diffprobe.core.memory import free_memory, keep_freed_memory

# Resident memory does not decrease when a large block is freed: the C library keeps it.
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
def test_freed_memory_stays_with_the_process() -> None:
    assert probe("keep") == "True True"
    assert probe("leave") == "False False"


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., Path]:
    """Write what a kernel reports: 8 MiB available, and the limits of the groups by name."""

    def write(**groups: str) -> Path:
        (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/meminfo").write_text("MemTotal: 16384 kB\nMemFree: 100 kB\nMemAvailable: 8192 kB\n")
        (tmp_path / "proc/self/cgroup").write_text("0::/job/step\n")
        for name, limit in groups.items():
            folder = tmp_path / "sys/fs/cgroup" / name.replace("_", "/")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "memory.max").write_text(f"{limit}\n")
            (folder / "memory.current").write_text("1000\n")
            (folder / "memory.stat").write_text("anon 400\ninactive_file 600\n")
        return tmp_path

    return write


def test_free_memory_is_what_is_available_and_no_more_than_a_group_leaves(machine: Callable[..., Path]) -> None:
    assert free_memory(machine()) == 8 * 2**20
    assert free_memory(machine(job_step="max", job="max")) == 8 * 2**20
    assert free_memory(machine(job_step="max", job="5000")) == 5000 - 1000 + 600
    assert free_memory(machine(job_step="3000", job="5000")) == 3000 - 1000 + 600
    assert free_memory(machine(job_step="10")) == 0


def test_free_memory_is_not_guessed(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")
def test_this_machine_has_some_memory_left() -> None:
    free = free_memory()
    assert free is not None and 2**20 < free < 2**50
