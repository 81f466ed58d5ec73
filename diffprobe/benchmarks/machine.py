"""Timing, operation counts, and the name and peak speed of the machine, for benchmarks."""

import time
from collections.abc import Callable
from pathlib import Path

import torch


def count_flop(run: Callable[[], object]) -> int:
    """Count the floating-point operations of a call with torch's counter (a multiply-add is two)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def wait(device: torch.device) -> None:
    """Wait until a device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of one call by a clock, including the work that it queued on the device."""
    wait(device)
    start = clock()
    run()
    wait(device)
    return clock() - start


def clock_of(device: torch.device) -> tuple[str, Callable[[], float]]:
    """Return the name of the clock that times a device, and the clock, in seconds.

    `processor` time on a CPU with one thread, which other programs do not change much; `wall` time otherwise.
    """
    if device.type == "cpu" and torch.get_num_threads() == 1:
        return "processor", time.process_time
    return "wall", time.perf_counter


def matmul_gflops(device: torch.device, dtype: torch.dtype, side: int = 2048) -> float:
    """Return the speed of one square matrix product, in billions of operations per second."""
    a = torch.randn(side, side, device=device).to(dtype)
    clock = clock_of(device)[1]
    best = min(seconds(lambda: a @ a, device, clock) for _ in range(5))
    return 2 * side**3 / best / 1e9


def machine() -> str:
    """Return processor or accelerator, threads and torch version; the host name is not included."""
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
        name = f"{name}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"
