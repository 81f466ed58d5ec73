"""Choice of the device, and the guard that fixes the precision of a forward pass."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from diffprobe.core.errors import ConfigError

_LOCAL = ("LOCAL_RANK", "SLURM_LOCALID")
"""Environment variables of torchrun and srun with the number of a process on its machine; torchrun's counts first."""
Value = TypeVar("Value")
_log = logging.getLogger(__name__)


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device called `name`; `auto` takes the accelerator if there is one.

    With several accelerators, each process started by torchrun or srun takes its own, by its number on the machine.

    Raises: ConfigError.
    """
    if name == "auto":
        return _own_accelerator() if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}, but torch sees no CUDA device.", fix="backbone.device=cpu, or auto")
    return device


def set_memory_format(network: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out the weights of convolutions over maps; those over frames, which this format does not have, stay."""
    for value in chain(network.parameters(), network.buffers()):
        if value.ndim == 4:
            value.data = value.data.contiguous(memory_format=memory_format)


def has_bfloat16() -> bool:
    """Return whether this processor computes in bfloat16 by instructions of its own (AVX-512 or AMX)."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def warn_slow_bfloat16(setting: str, fix: str) -> None:
    """Warn that `setting` asks for bfloat16 on a processor without instructions for it.

    Matrix products and convolutions are then up to a hundred times slower than in float32, and nothing else says why.
    """
    if not has_bfloat16():
        _log.warning(
            "%s: this processor has no instructions for bfloat16 (AVX-512 or AMX); it is far slower than float32. "
            "Try: %s",
            setting,
            fix,
        )


def _own_accelerator() -> torch.device:
    given = [(name, os.environ[name]) for name in _LOCAL if name in os.environ]
    n_devices = torch.cuda.device_count()
    if not given or n_devices < 2:  # srun may show each process its own accelerator alone
        return torch.device("cuda")
    name, number = given[0]
    if not number.isdecimal():
        raise ConfigError(f"the environment variable {name}='{number}' is not a number.", fix="backbone.device=cuda:0")
    return torch.device("cuda", int(number) % n_devices)


@contextmanager
def exact(device: torch.device, dtype: str) -> Iterator[None]:
    """Run in the requested precision: no autocast of a surrounding step, and neither TF32 nor bfloat16 for float32."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type in _FULL_PRECISION and dtype == "float32":
            stack.enter_context(_FULL_PRECISION[device.type]())
        yield


@contextmanager
def _no_bfloat16() -> Iterator[None]:
    """Keep float32 products and convolutions of a CPU in float32.

    Where a user set `torch.set_float32_matmul_precision("medium")`, torch computes them in bfloat16 on a processor with
    instructions for it; torch before 2.9 has no switch of its own for that.
    """
    onednn: Any = torch.backends.mkldnn
    new = [onednn.matmul, onednn.conv] if hasattr(onednn, "conv") else []
    before = [switch.fp32_precision for switch in new]
    precision = _read(torch.get_float32_matmul_precision) if not new else None
    try:
        if not new:
            torch.set_float32_matmul_precision("highest")
        for switch in new:
            switch.fp32_precision = "ieee"
        yield
    finally:
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        for switch, value in zip(new, before, strict=True):
            switch.fp32_precision = value


@contextmanager
def _no_tf32() -> Iterator[None]:
    """Switch TF32 off, and nothing else.

    Since 2.9 torch has old switches and new ones (`fp32_precision`). Only the new ones affect a convolution where a
    user set `torch.backends.fp32_precision`. The old ones must agree with them: reading them raises where they differ.
    """
    cudnn: Any = torch.backends.cudnn
    new = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn] if hasattr(cudnn, "conv") else []
    before = [switch.fp32_precision for switch in new]
    matmul, convolution = _read(torch.get_float32_matmul_precision), _read(lambda: cudnn.allow_tf32)
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        for switch in new:
            switch.fp32_precision = "ieee"
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolution is not None:
            cudnn.allow_tf32 = convolution
        for switch, precision in zip(new, before, strict=True):
            switch.fp32_precision = precision


def _read(old_switch: Callable[[], Value]) -> Value | None:
    """Read an old switch; None where it already differs from the new ones."""
    try:
        return old_switch()
    except RuntimeError:
        return None


_FULL_PRECISION = {"cuda": _no_tf32, "cpu": _no_bfloat16}
"""Type of a device -> what keeps float32 in float32 there."""
