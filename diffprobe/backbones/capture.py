"""Reading modules of a network while it runs, in one layout, and running no further than needed.

Owns hooks and the cut; how an output holds the image is layout.py's. `trace` learns from one pass on the meta device
what every module gives and what runs before it; `cut` takes away what never runs; `Capture` reads the taps of the real
network.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from diffprobe.backbones.layout import Layout
from diffprobe.core.errors import RunFailed
from diffprobe.core.shapes import FeatureMap


@dataclass(frozen=True)
class TapShape:
    """What one module gives, and what it takes to get there.

    Attributes:
        channels: size of the channel axis.
        size: height and width of the map.
        flops: floating-point operations of one image until the module has ended; 0 if they were not counted.
        n_entered: modules that have been entered by then.
    """

    channels: int
    size: tuple[int, int]
    flops: int
    n_entered: int


@dataclass(frozen=True)
class Trace:
    """One pass of a network.

    Attributes:
        taps: module path -> shape, in the order in which the modules end. Modules that run more than once in a pass, or
            give no map, are left out.
        entered: paths of all modules in the order in which they were entered.
        flops: operations of the whole pass.
    """

    taps: dict[str, TapShape]
    entered: tuple[str, ...]
    flops: int

    def needed(self, taps: Collection[str]) -> frozenset[str]:
        """Return the modules that run until the last of `taps` has ended."""
        return frozenset(self.entered[: max(self.taps[tap].n_entered for tap in taps)])


def trace(network: nn.Module, run: Callable[[nn.Module], object], layout: Layout, *, count: bool = True) -> Trace:
    """Run a network on the meta device and note what each module gives.

    Args:
        network: the network, on the meta device.
        run: starts one forward pass of one image.
        layout: how outputs hold the image.
        count: count operations as well; this takes most of the time.
    """
    entered: list[str] = []
    taps: dict[str, TapShape] = {}
    runs: dict[str, int] = {}
    counter = FlopCounterMode(display=False) if count else None

    def flops() -> int:
        return counter.get_total_flops() if counter else 0

    def before(path: str) -> Callable[..., None]:
        return lambda *_: entered.append(path)

    def after(path: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            runs[path] = runs.get(path, 0) + 1
            x = layout.image(output, path)
            if x is not None:
                taps[path] = TapShape(x.shape[1], (x.shape[2], x.shape[3]), flops(), len(entered))

        return note

    handles: list[RemovableHandle] = []
    for path, module in network.named_modules():
        if path:
            handles += [module.register_forward_pre_hook(before(path)), module.register_forward_hook(after(path))]
    try:
        with torch.no_grad(), counter or nullcontext():
            run(network)
    finally:
        for handle in handles:
            handle.remove()
    once = {path: shape for path, shape in taps.items() if runs[path] == 1}
    return Trace(once, tuple(entered), flops())


class Absent(nn.Module):
    """Stands where a module was that no asked-for tap needs. Has no parameters and can't be run."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse. Raises: RunFailed."""
        raise RunFailed(
            "a module ran that was cut from the backbone.", "this is a fault of diffprobe: the trace missed it"
        )


def cut(network: nn.Module, needed: Collection[str]) -> None:
    """Replace in place every module that is neither in `needed` nor holds one that is, and so free its parameters."""
    kept = {""}
    for path in needed:
        parts = path.split(".")
        kept.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    _cut_below(network, "", kept)


def _cut_below(module: nn.Module, prefix: str, kept: Collection[str]) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if path in kept or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            _cut_below(child, f"{path}.", kept)  # lists keep their length: blocks iterate over them before they are run
        else:
            module.register_module(name, Absent())


class _Reached(Exception):
    """Ends a pass once the deepest tap has been read."""


class Capture:
    """Hooks on the taps of one network.

    Args:
        network: the network, cut or whole.
        taps: module paths in the order in which they end.
        layout: how outputs hold the image.
        read: what to keep of each feature map; called inside the pass, so that the map itself need not be held. Its
            second argument is what the call was given as `rows`.
        stop: end the pass when the last tap has been read.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[str],
        *,
        layout: Layout,
        read: Callable[[FeatureMap, Any], Tensor],
        stop: bool = True,
    ) -> None:
        self._network, self._taps, self._layout = network, tuple(taps), layout
        self._read, self._stop = read, stop

    def __call__(self, run: Callable[[], object], rows: Any = None) -> dict[str, Tensor]:
        """Run the network once and return what was read, by tap. `rows` goes to `read` as it is."""
        found: dict[str, Tensor] = {}
        with self._hooked(found, rows):
            try:
                run()
            except _Reached:
                pass
        missing = [tap for tap in self._taps if tap not in found]
        if missing:
            raise RunFailed(f"the pass ended before {', '.join(missing)} was reached.", "this is a fault of diffprobe")
        return found

    @contextmanager
    def _hooked(self, found: dict[str, Tensor], rows: Any) -> Iterator[None]:
        def make(tap: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                feature_map = self._layout.image(output, tap)
                if feature_map is None:
                    raise RunFailed(f"tap '{tap}' gave no feature map.", f"got: {type(output).__name__}")
                found[tap] = self._read(feature_map, rows)
                if self._stop and len(found) == len(self._taps):
                    raise _Reached

            return hook

        handles = [self._network.get_submodule(tap).register_forward_hook(make(tap)) for tap in self._taps]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
