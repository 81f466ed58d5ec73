"""Estimate the memory of a forward pass without weights and without running it: the network is on the meta device.

Every operation reports the storage that it makes; the estimate is the largest sum of those that are alive at one time.
The weights follow from the shapes, too, by what is held of them.
Not counted are the workspaces of convolution and attention kernels, what an allocator keeps, and the libraries.
"""

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffprobe.backbones.quantized import planned_bytes


class _Alive(TorchDispatchMode):
    """Counts the bytes of the storages that operations make, and the largest number at one time."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self._known, self._sizes = known, dict[int, int]()
        self._now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._sizes and key not in self._known:
            self._sizes[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self._now -= self._sizes.pop(key, 0)


def peak_activations(network: nn.Module, run: Callable[[], object]) -> int:
    """Return the most bytes that the results of operations take at one time, without parameters and buffers.

    Args:
        network: on the meta device, or on another one.
        run: runs it once.
    """
    weights = [value.untyped_storage() for value in chain(network.parameters(), network.buffers())]
    counter = _Alive({storage._cdata for storage in weights})
    with torch.no_grad(), _fused_attention(), counter:
        run()
    return counter.peak


def held_weights(
    network: nn.Module, blocks: Sequence[str], dtype: torch.dtype, *, offload: bool = False, quantize: str = "none"
) -> tuple[int, int]:
    """Return the bytes of a denoiser's parameters that are in memory in a pass, and how many more while they are read.

    With `offload` the blocks count as the two neighbours that are largest together: one runs, and the next one is read.
    With `quantize` a block is held in full precision besides the others while it is quantised.

    Args:
        network: on the meta device, or on another one.
        blocks: paths of its blocks, in the order in which they run.
        dtype: precision of the pass.
        offload: whether the blocks stay in files.
        quantize: `none`, `int8` or `fp8`, of the linear layers in the blocks.
    """
    parts = [network.get_submodule(path) for path in blocks]
    sizes = [_parameter_bytes(part, dtype) for part in parts]
    outside, largest = _parameter_bytes(network, dtype) - sum(sizes), max(sizes, default=0)
    if offload:
        pairs = zip(sizes, sizes[1:] + sizes[:1], strict=True)
        return outside + (max(map(sum, pairs)) if len(sizes) > 1 else largest), 0
    if quantize == "none":
        return outside + sum(sizes), 0
    return outside + sum(planned_bytes(part, dtype, quantize) for part in parts), largest


def _parameter_bytes(network: nn.Module, dtype: torch.dtype) -> int:
    return sum(x.numel() for x in network.parameters()) * dtype.itemsize


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Take the attention of a pass on the meta device as one operation: kernels do not keep the matrix of scores."""
    own = nn.functional.scaled_dot_product_attention

    def fused(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not query.is_meta:
            return own(query, key, value, *args, **kwargs)
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    nn.functional.scaled_dot_product_attention = fused
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = own
