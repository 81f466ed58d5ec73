"""`torch.compile` together with hooks: which parts of a denoiser are compiled, and errors of compilation.

A hook inside compiled code breaks its graph, and a pass that ends early leaves it half run. Therefore only regions
without a hook inside are compiled: whole blocks that contain no tap, and the modules around the taps of other blocks.
A region's `forward` is compiled, not its call, so that a hook on the region itself, for example the one that ends the
pass, runs outside of the compiled code. Equal blocks share one compilation.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from diffprobe.backbones.hooks import PrunedModule
from diffprobe.backbones.readouts import hooked_modules
from diffprobe.core.errors import RunFailed

_RECOMPILE_LIMIT = 256
"""Limit of compilations of one piece of code. Regions of one class share it, each with its own shapes; torch's default
of 8 would leave most of a U-Net uncompiled."""


def regions(network: nn.Module, blocks: Sequence[str], taps: Sequence[str]) -> tuple[str, ...]:
    """List the modules to compile: as large as possible without a hook strictly inside.

    Args:
        network: the denoiser, pruned or whole.
        blocks: paths of its blocks; modules outside of them are not compiled.
        taps: taps that are read.
    """
    hooked = {path for tap in taps for path in hooked_modules(tap)}
    found: list[str] = []

    def visit(path: str, module: nn.Module) -> None:
        if isinstance(module, PrunedModule) or not any(True for _ in module.children()):
            return  # a single layer gains nothing
        if isinstance(module, (nn.ModuleList, nn.ModuleDict)) or any(h.startswith(f"{path}.") for h in hooked):
            for name, child in module.named_children():
                visit(f"{path}.{name}", child)
        else:
            found.append(path)

    for block in blocks:
        visit(block, network.get_submodule(block))
    return tuple(found)


def compile_regions(network: nn.Module, blocks: Sequence[str], taps: Sequence[str], *, backend: str) -> None:
    """Compile in place; compilation runs at the first pass of each shape.

    Args:
        network, blocks, taps: see `regions`.
        backend: a backend of torch.compile: `inductor`, or for tests `eager` and `aot_eager`.
    """
    for path in regions(network, blocks, taps):
        module = network.get_submodule(path)
        setattr(module, "forward", torch.compile(module.forward, backend=backend))  # noqa: B010 - a method is replaced


@contextmanager
def compiling() -> Iterator[None]:
    """Run passes of a compiled network. Raises: RunFailed if a region can't be compiled."""
    from torch._dynamo import config
    from torch._dynamo.exc import TorchDynamoException

    try:
        with config.patch(recompile_limit=_RECOMPILE_LIMIT):
            yield
    except TorchDynamoException as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RunFailed(
            "the denoiser cannot be compiled on this machine.",
            f"torch: {reason[:300]}",
            fix="backbone.compile=false; on a CPU compiling needs a C++ compiler (g++)",
        ) from error
