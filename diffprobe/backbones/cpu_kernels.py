"""float32 linear layers of a denoiser through oneDNN, where MKL is slow (processors that are not from Intel).

torch runs float32 linear layers with MKL and convolutions with oneDNN already, so only linear layers are changed. Both
libraries compute in float32; the order of their sums differs, and so do the last bits. `auto` measures the layers of
the model at hand on this machine, once per process.
"""

import functools
import logging
import time
from collections import Counter
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.device import choose_device
from diffprobe.backbones.plan import ReadPlan
from diffprobe.core.errors import ConfigError

KERNELS = ("mkl", "onednn")
"""Libraries of linear layers."""
MARGIN = 1.15
"""`auto` takes oneDNN where it is this many times as fast as MKL, which is beyond the spread of the measurement."""
_MIN_ROWS = 32
"""Fewest rows of a product that goes to oneDNN: below, it reads and reorders the weights for little arithmetic."""
_PASS = 64
"""Rows of a pass that products are measured for where `max_rows_per_pass` is not set, before they are cut."""
_PROBE_ROWS = 512
"""Most rows of a measured product; speeds hardly grow beyond."""
_SHARE, _MAX_SHAPES, _REPEATS = 0.9, 8, 5
"""Share of the operations of all linear layers that is measured, in so many products at most, so often each."""

Shape = tuple[int, int, int, int]
"""Rows, inputs and outputs of a product, and the number of layers that compute it."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class KernelChoice:
    """Which library runs the linear layers, and why."""

    used: str
    """One of `KERNELS`."""
    ratio: float | None = None
    """Seconds of MKL over those of oneDNN, where they were measured."""

    def __str__(self) -> str:
        if self.ratio is None:
            return f"linear layers by {self.used}"
        return f"linear layers by {self.used}: oneDNN is {self.ratio:.2f} x as fast as MKL (margin {MARGIN})"


def choose_kernels(plan: ReadPlan) -> KernelChoice:
    """Return the library that `backbone.cpu_kernels` of a plan names, for `auto` after a measurement.

    Raises: ConfigError, see `check_kernels`.
    """
    check_kernels(plan)
    asked = plan.backbone.cpu_kernels
    if asked != "auto":
        return KernelChoice(used=asked)
    ratio = measured_ratio(_largest(linear_shapes(plan)))
    choice = KernelChoice(used="onednn" if ratio >= MARGIN else "mkl", ratio=ratio)
    _log.info("%s: %s", plan.checkpoint.name, choice)
    return choice


def check_kernels(plan: ReadPlan) -> None:
    """Refuse a `backbone.cpu_kernels` other than mkl that has no effect.

    Raises: ConfigError for another device than the CPU, torch without oneDNN, or a plan without large linear layers.
    """
    asked, name = plan.backbone.cpu_kernels, plan.checkpoint.name
    if asked == "mkl":
        return
    device = choose_device(plan.backbone.device)
    if device.type != "cpu":
        raise ConfigError(
            f"cpu_kernels={asked}, but the backbone runs on {device}.", fix="remove it, or backbone.device=cpu"
        )
    if not torch.backends.mkldnn.is_available():
        raise ConfigError(f"cpu_kernels={asked}, but this torch was built without oneDNN.", fix="remove it")
    if not linear_shapes(plan):
        raise ConfigError(f"cpu_kernels={asked}: '{name}' has no linear layer that it is for.", fix="remove it")


def linear_shapes(plan: ReadPlan) -> tuple[Shape, ...]:
    """List the products of the linear layers that a plan runs in a full pass; no weights are read.

    Those of few rows are left out, since they stay with MKL.
    """
    found: Counter[tuple[int, int, int]] = Counter()
    of_pass = plan.backbone.max_rows_per_pass or _PASS

    def note(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(layer, nn.Linear)
        rows = of_pass * args[0].numel() // layer.in_features
        found[min(rows, _PROBE_ROWS), layer.in_features, layer.out_features] += 1

    layers = [plan.spec.denoiser.get_submodule(path) for path in plan.needed if path]
    handles = [layer.register_forward_pre_hook(note) for layer in layers if type(layer) is nn.Linear]
    try:
        with torch.no_grad():
            plan.spec.run(plan.spec.denoiser)
    finally:
        for handle in handles:
            handle.remove()
    return tuple((*shape, n) for shape, n in sorted(found.items()) if shape[0] >= _MIN_ROWS)


def _largest(shapes: tuple[Shape, ...]) -> tuple[Shape, ...]:
    """Return the products with most operations, until they have the share that is measured."""
    cost = {shape: shape[0] * shape[1] * shape[2] * shape[3] for shape in shapes}
    total, chosen, covered = sum(cost.values()), list[Shape](), 0
    for shape in sorted(shapes, key=lambda shape: cost[shape], reverse=True)[:_MAX_SHAPES]:
        if covered < _SHARE * total:
            chosen.append(shape)
            covered += cost[shape]
    return tuple(chosen)


@functools.cache
def measured_ratio(shapes: tuple[Shape, ...]) -> float:
    """Return the time of MKL over that of oneDNN for some products, alternating, the fastest of each."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    total = dict.fromkeys(KERNELS, 0.0)
    generator = torch.Generator().manual_seed(0)
    for rows, d_in, d_out, n in shapes:
        x, weight = (torch.randn(*size, generator=generator) for size in ((rows, d_in), (d_out, d_in)))
        bias, best = torch.zeros(d_out), dict.fromkeys(KERNELS, float("inf"))
        for repeat in range(_REPEATS + 1):
            for name, product in (("mkl", F.linear), ("onednn", onednn_linear)):
                start = clock()
                product(x, weight, bias)
                if repeat:  # the first one makes the kernel
                    best[name] = min(best[name], clock() - start)
        for name in KERNELS:
            total[name] += n * best[name]
    return total["mkl"] / total["onednn"]


def onednn_linear(
    x: Float[Tensor, "... d_in"], weight: Float[Tensor, "d_out d_in"], bias: Float[Tensor, " d_out"] | None
) -> Float[Tensor, "... d_out"]:
    """Return x times the transposed weight, plus bias, by oneDNN; float32 on a CPU, without gradients."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


def use_onednn(network: nn.Module) -> int:
    """Let the linear layers of a network, in place, run through oneDNN; weights stay as they are.

    A product of few rows, or one whose input is not float32 on a CPU, runs as before.
    Returns: the number of layers.
    """
    layers = [module for module in network.modules() if type(module) is nn.Linear]
    for layer in layers:
        setattr(layer, "forward", functools.partial(_forward, layer))  # noqa: B010 - a method is replaced
    return len(layers)


def _forward(layer: nn.Linear, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_out"]:
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.numel() < _MIN_ROWS * layer.in_features:
        return F.linear(x, layer.weight, layer.bias)
    return onednn_linear(x, layer.weight, layer.bias)
