"""Where a backbone runs, and how exactly. Owns the choice of the device and the guard around a forward pass."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from diffprobe.core.errors import ConfigError


def choose_device(name: str | torch.device) -> torch.device:
    """Return the device called `name`; `auto` takes the accelerator if there is one. Raises: ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name}, but torch sees no CUDA device.", fix="backbone.device=cpu, or auto")
    return device


@contextmanager
def exact(device: torch.device, dtype: str) -> Iterator[None]:
    """Run in the precision asked for: no autocast of a surrounding step, no TF32 under the name of float32."""
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if device.type == "cuda" and dtype == "float32":
            stack.enter_context(torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False))
            precision = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            stack.callback(torch.set_float32_matmul_precision, precision)
        yield
