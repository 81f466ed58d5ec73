"""Devices by name, and float32 that is float32."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from diffprobe.backbones.device import choose_device, exact, has_bfloat16, set_memory_format
from diffprobe.core.errors import ConfigError


def test_devices_are_taken_by_name() -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_convolutions_over_frames_keep_their_layout() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv3d(4, 8, 3), torch.nn.Linear(4, 8))
    before = [value.clone() for value in network.parameters()]
    set_memory_format(network, torch.channels_last)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert network[1].weight.is_contiguous() and network[2].weight.is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), before, strict=True))
    set_memory_format(network, torch.contiguous_format)
    assert network[0].weight.is_contiguous()


@pytest.mark.parametrize(
    ("environ", "n_devices", "expected"),
    [
        ({}, 4, "cuda"),
        ({"LOCAL_RANK": "2"}, 4, "cuda:2"),
        ({"SLURM_LOCALID": "3"}, 4, "cuda:3"),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 4, "cuda:1"),
        ({"LOCAL_RANK": "5"}, 4, "cuda:1"),
        ({"LOCAL_RANK": "2"}, 1, "cuda"),
    ],
)
def test_each_process_takes_its_own_accelerator(
    environ: dict[str, str], n_devices: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: n_devices)
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert choose_device("auto") == torch.device(expected)
    assert choose_device("cuda:0") == torch.device("cuda:0")


def test_an_invalid_process_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "first")
    with pytest.raises(ConfigError, match="LOCAL_RANK='first'"):
        choose_device("auto")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="no CUDA device"):
        choose_device("cuda:1")


def test_a_surrounding_autocast_does_not_reach_the_backbone() -> None:
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        with exact(torch.device("cpu"), "float32"):
            assert (x @ x).dtype == torch.float32


@pytest.mark.skipif(not has_bfloat16(), reason="this processor computes float32 in float32 in any case")
def test_float32_of_a_cpu_stays_float32_where_a_user_allows_less(switches: None) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(128, 256, generator=generator) for _ in range(2))
    torch.set_float32_matmul_precision("medium")
    before = state()
    with exact(torch.device("cpu"), "float32"):
        found = F.linear(x, weight)
    assert float((found - F.linear(x.double(), weight.double())).abs().max()) < 1e-4  # 1e-1 in bfloat16
    assert state() == before


CUDNN: Any = torch.backends.cudnn
SWITCHES: tuple[Any, ...] = (torch.backends, torch.backends.cuda.matmul, CUDNN, CUDNN.conv, CUDNN.rnn)
OLD: tuple[Callable[[], Any], ...] = (torch.get_float32_matmul_precision, lambda: CUDNN.allow_tf32)


def state() -> list[object]:
    """Read all switches of precision, old and new; an old one that contradicts the new ones can't be read."""
    found: list[object] = [switch.fp32_precision for switch in SWITCHES]
    for read in OLD:
        try:
            found.append(read())
        except RuntimeError:
            found.append("contradiction")
    return found


@pytest.fixture
def switches() -> Iterator[None]:
    """Put all switches back; the flags of cuDNN too."""
    flags = (CUDNN.deterministic, CUDNN.benchmark, CUDNN.benchmark_limit)
    before, old = [switch.fp32_precision for switch in SWITCHES], [read() for read in OLD]
    yield
    CUDNN.deterministic, CUDNN.benchmark, CUDNN.benchmark_limit = flags
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision(old[0])
    CUDNN.allow_tf32 = old[1]
    for switch, precision in zip(SWITCHES, before, strict=True):
        switch.fp32_precision = precision


def set_all_new() -> None:
    torch.backends.fp32_precision = "tf32"  # type: ignore[attr-defined]


def set_new_matmul() -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32"


@pytest.mark.parametrize(
    "users",
    [lambda: None, lambda: torch.set_float32_matmul_precision("medium"), set_all_new, set_new_matmul],
    ids=["defaults", "old", "all new", "new matmul"],
)
@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_float32_is_float32_and_nothing_else_changes(users: Callable[[], None], switches: None) -> None:
    users()
    CUDNN.deterministic = CUDNN.benchmark = True
    before = state()
    with exact(torch.device("cuda"), "float32"):
        assert [switch.fp32_precision for switch in SWITCHES[1:4:2]] == ["ieee", "ieee"]  # products and convolutions
        assert [read() for read in OLD] == ["highest", False]
        assert CUDNN.deterministic and CUDNN.benchmark
    assert state() == before
    assert CUDNN.deterministic and CUDNN.benchmark
