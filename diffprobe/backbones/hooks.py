"""Read modules of a network with hooks, and run no further than needed.

`trace` runs one pass on the meta device to learn the shape of every tap and what runs before it; `prune_after` removes
modules that never run; `Capture` reads the taps of the real network. Layouts of outputs are in `layout.py`, attention
maps and texts in `readouts.py`.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from diffprobe.backbones.attended import Attended, Ready
from diffprobe.backbones.attention_parts import PARTS, AttentionPart, may_have_parts, watch_parts
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.modulation import MODULATED, may_modulate
from diffprobe.backbones.readouts import ATTENTION, may_attend, watch, watch_attention
from diffprobe.core.errors import RunFailed
from diffprobe.core.shapes import FeatureMap


@dataclass(frozen=True)
class TapShape:
    """Shape of one tap, and the cost of reaching it.

    Attributes:
        form: `map`, `tokens` (laid out on their grid), `attention` (one channel per text token) or `text` (one row per
            token).
        channels: size of the channel axis.
        size: height and width of the map.
        flops: floating-point operations of one image until the tap is read; 0 if they were not counted.
        n_entered: number of modules entered by then.
    """

    form: str
    channels: int
    size: tuple[int, int]
    flops: int
    n_entered: int


@dataclass(frozen=True)
class Trace:
    """One pass of a network.

    Attributes:
        taps: tap -> shape, in the order in which they can be read. Modules that run more than once per pass, or output
            no map, are left out.
        entered: paths of all modules in the order in which they were entered.
        flops: operations of the whole pass.
    """

    taps: dict[str, TapShape]
    entered: tuple[str, ...]
    flops: int

    def needed(self, taps: Collection[str]) -> frozenset[str]:
        """Return the modules that run until the last of `taps` has ended."""
        return frozenset(self.entered[: max(self.taps[tap].n_entered for tap in taps)])


def trace(network: nn.Module, run: Callable[[nn.Module], object], layout: OutputLayout, *, count: bool = True) -> Trace:
    """Run a network on the meta device and record what can be read.

    Args:
        network: the network, on the meta device.
        run: starts one forward pass of one image.
        layout: where the image is in the outputs.
        count: count operations as well, which takes most of the time.
    """
    entered: list[str] = []
    taps: dict[str, TapShape] = {}
    runs: dict[str, int] = {}
    counter = FlopCounterMode(display=False) if count else None

    def flops() -> int:
        return counter.get_total_flops() if counter else 0

    def note(tap: str, form: str, channels: int, size: tuple[int, int]) -> None:
        taps[tap] = TapShape(form, channels, size, flops(), len(entered))

    def before(path: str) -> Callable[..., None]:
        return lambda *_: entered.append(path)

    def after(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            runs[path] = runs.get(path, 0) + 1
            for tap, x in ((path, layout.image(output, path)), (f"{path}/text", layout.text(output, path))):
                if x is not None:
                    is_map = any(x is leaf for leaf in tree_leaves(output))  # tokens are copied into a map
                    form = "text" if tap != path else "map" if is_map else "tokens"
                    note(tap, form, x.shape[1], (x.shape[2], x.shape[3]))
            if path in taps and may_modulate(module):
                note(f"{path}/{MODULATED}", "tokens", taps[path].channels, taps[path].size)

        return hook

    def attended(path: str) -> Ready:
        def ready(found: Attended) -> None:
            x = layout.on_grid(found.q)
            if x is not None and found.q.shape[-1] == found.k.shape[-1]:
                for readout in ATTENTION:
                    note(f"{path}/{readout}", "attention", found.n_text, (x.shape[2], x.shape[3]))

        return ready

    def part_of(path: str) -> Callable[[str, AttentionPart], None]:
        def give(part: str, found: AttentionPart) -> None:
            x = found.as_map(layout)
            if x is not None:
                note(f"{path}/{part}", "text" if found.is_text else "tokens", x.shape[1], (x.shape[2], x.shape[3]))

        return give

    handles: list[RemovableHandle] = []
    for path, module in network.named_modules():
        if path:
            handles += [module.register_forward_pre_hook(before(path)), module.register_forward_hook(after(path))]
            if may_attend(module, path, layout):
                handles += watch_attention(module, path, layout, attended(path))
            if may_have_parts(module):
                handles += watch_parts(module, path, layout, PARTS, part_of(path))
    try:
        with torch.no_grad(), counter or nullcontext():
            run(network)
    finally:
        for handle in handles:
            handle.remove()
    once = {tap: shape for tap, shape in taps.items() if runs.get(tap.partition("/")[0]) == 1}
    return Trace(once, tuple(entered), flops())


class PrunedModule(nn.Module):
    """Placeholder of a module that no requested tap needs. Has no parameters and can't be run."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Raises: RunFailed."""
        raise RunFailed(
            "a module ran that was pruned from the backbone.", "this is a bug in diffprobe: the trace missed it"
        )


def prune_after(network: nn.Module, needed: Collection[str]) -> None:
    """Replace in place every module that neither is in `needed` nor contains one that is, to free its parameters."""
    kept = {""}
    for path in needed:
        parts = path.split(".")
        kept.update(".".join(parts[: i + 1]) for i in range(len(parts)))
    _prune_below(network, "", kept)


def _prune_below(module: nn.Module, prefix: str, kept: Collection[str]) -> None:
    for name, child in list(module.named_children()):
        path = f"{prefix}{name}"
        if path in kept or isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            # lists keep their length: blocks iterate over them before they are run
            _prune_below(child, f"{path}.", kept)
        else:
            module.register_module(name, PrunedModule())


class StopForward(Exception):
    """Ends a forward pass once the deepest tap has been read."""


class Capture:
    """Hooks on the taps of one network.

    Args:
        network: the network, pruned or whole.
        taps: module paths and readouts in the order in which they can be read.
        layout: where the image is in the outputs.
        read: returns what is kept of each feature map; called inside the pass, so that the map itself need not be held.
            Its second argument is the `rows` of the call.
        change: takes a tap and its feature map, and returns the map that is read in its place.
        stop: end the pass when the last tap has been read.
    """

    def __init__(
        self,
        network: nn.Module,
        taps: Sequence[str],
        *,
        layout: OutputLayout,
        read: Callable[[FeatureMap, Any], Tensor],
        change: Callable[[str, FeatureMap], FeatureMap] | None = None,
        stop: bool = True,
    ) -> None:
        self._network, self._taps, self._layout = network, tuple(taps), layout
        self._read, self._change, self._stop = read, change, stop

    def __call__(self, run: Callable[[], object], rows: Any = None) -> dict[str, Tensor]:
        """Run the network once and return what was read, by tap. `rows` is passed on to `read`."""
        found: dict[str, Tensor] = {}
        with self._hooked(found, rows):
            try:
                run()
            except StopForward:
                pass
        missing = [tap for tap in self._taps if tap not in found]
        if missing:
            raise RunFailed(f"the pass ended before {', '.join(missing)} was reached.", "this is a bug in diffprobe")
        return found

    @contextmanager
    def _hooked(self, found: dict[str, Tensor], rows: Any) -> Iterator[None]:
        def make(tap: str) -> Callable[[FeatureMap], None]:
            def give(feature_map: FeatureMap) -> None:
                changed = feature_map if self._change is None else self._change(tap, feature_map)
                found[tap] = self._read(changed, rows)
                if self._stop and len(found) == len(self._taps):
                    raise StopForward

            return give

        handles: list[RemovableHandle] = []
        try:
            for tap in self._taps:
                handles += watch(self._network, tap, self._layout, make(tap))
            yield
        finally:
            for handle in handles:
                handle.remove()
