"""Bounds on what a configuration of others may make this process build: modules, layers, bytes.

A few bytes of JSON can describe a network that takes hours to build or more memory than there is. The bounds are far
above every published network; `backbone.max_modules` raises them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from diffprobe.config.schema import BackboneConfig
from diffprobe.core.errors import RunFailed, WeightsMismatch
from diffprobe.core.memory import free_memory

MAX_MODULES = BackboneConfig.max_modules
"""Modules of a network by default."""
_PER_LAYER = 20
"""Modules that a layer has about; the number of layers is bounded by this share of the modules."""
_limit: ContextVar[int] = ContextVar("max_modules", default=MAX_MODULES)


@contextmanager
def module_limit(n: int) -> Iterator[None]:
    """Set how many modules a network built inside may have."""
    token = _limit.set(n)
    try:
        yield
    finally:
        _limit.reset(token)


@contextmanager
def bounded(config: Mapping[str, Any], where: Path | str) -> Iterator[None]:
    """Build a network inside: the number of its layers is checked before, that of its modules while it is built.

    Args:
        config: what it is built from.
        where: the file of the config, for the message.
    Raises: WeightsMismatch.
    """
    limit, built = _limit.get(), 0
    for key, value in config.items():
        most = _largest(value, numbers="layer" in key)
        if most > limit // _PER_LAYER:
            raise _too_large(f"{key} is {most:,}", where, limit)

    def count(module: nn.Module, name: str, child: nn.Module | None) -> None:
        nonlocal built
        built += child is not None
        if built > limit:
            raise _too_large("the network has more modules", where, limit)

    handle = register_module_module_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def _largest(value: object, *, numbers: bool) -> int:
    """Return the length of the longest list in a value; with `numbers` its largest whole number counts too."""
    if isinstance(value, int):
        return value if numbers else 0
    if isinstance(value, list):
        return max([len(value), *(_largest(entry, numbers=numbers) for entry in value)])
    return 0


def _too_large(what: str, where: Path | str, limit: int) -> WeightsMismatch:
    return WeightsMismatch(
        f"'{where}' describes a network that is too large: {what}.",
        f"allowed: {limit:,} modules, {limit // _PER_LAYER:,} layers",
        fix=f"backbone.max_modules={limit * 10}, if this checkpoint is meant to be that large",
    )


def network_bytes(network: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a network, on the meta device too."""
    return sum(x.numel() * x.element_size() for x in chain(network.parameters(), network.buffers()))


def require_memory(n_bytes: int, where: Path | str) -> None:
    """Check that the tensors of a file, or of a network that it describes, fit into the free memory.

    Raises: RunFailed. Passes where the free memory is unknown.
    """
    free = free_memory()
    if free is not None and n_bytes > free:
        raise RunFailed(
            f"'{where}' needs {n_bytes / 1e9:,.1f} GB of memory, {free / 1e9:,.1f} GB are free.",
            fix="ask for more memory, or set backbone.dtype=bfloat16",
        )
