import re

import pytest
import torch

from diffprobe.benchmarks.machine import clock_of, count_flop, machine, matmul_gflops, seconds

CPU = torch.device("cpu")


def test_operations_of_a_product_are_counted() -> None:
    assert count_flop(lambda: torch.ones(3, 5) @ torch.ones(5, 7)) == 2 * 3 * 5 * 7


def test_a_call_is_timed_once() -> None:
    calls: list[int] = []
    assert seconds(lambda: calls.append(1), CPU) >= 0
    assert calls == [1]


@pytest.mark.parametrize(
    ("threads", "device", "name"), [(1, "cpu", "processor"), (2, "cpu", "wall"), (1, "cuda", "wall")]
)
def test_processor_time_is_that_of_one_thread(
    threads: int, device: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    found, clock = clock_of(torch.device(device))
    assert found == name and seconds(lambda: None, CPU, clock) >= 0


def test_the_machine_is_named_without_its_host() -> None:
    import socket

    assert re.search(rf"torch {re.escape(torch.__version__)}$", machine())
    assert socket.gethostname() not in machine()
    assert matmul_gflops(CPU, torch.float32, side=64) > 0
