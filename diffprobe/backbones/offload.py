"""Hold the blocks of a denoiser in files and read each when it runs, so that a pass needs the memory of two blocks.

Everything outside the blocks stays in memory. A block is read at its entry and freed at its exit; while it runs, the
next one is read in a thread. The arithmetic is that of a network held whole, so features are the same bit for bit.
A module inside a block that runs outside the block's own pass is read for that (the embedding of a DiT's first block).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

_MARK = "_block_offload"
"""Attribute of a network whose blocks are offloaded."""

Read = Callable[[str], Mapping[str, Tensor]]
"""Reads the tensors of a block, by their names in it, in any memory layout."""


class BlockOffload:
    """Reads and frees the blocks of one network as its passes run.

    Args:
        network: the network, with the parameters of `blocks` on the meta device and all others in memory.
        blocks: paths of the blocks, in the order in which they run.
        read: reads one block.

    Attributes:
        most_held: largest number of blocks that were in memory at one time, with the one that is read ahead.
    """

    def __init__(self, network: nn.Module, blocks: Sequence[str], read: Read) -> None:
        self.blocks, self._read, self.most_held = tuple(blocks), read, 0
        self._network, self._device = network, torch.device("cpu")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="offload")
        self._borrowed: set[nn.Module] = set()
        self._ahead: tuple[str, Future[Mapping[str, Tensor]]] | None = None
        for i, path in enumerate(self.blocks):
            block = network.get_submodule(path)
            block.register_forward_pre_hook(self._entering(path, self.blocks[(i + 1) % len(self.blocks)]))
            block.register_forward_hook(self._leaving(path), always_call=True)  # a pass may end inside a block
            for name, module in block.named_modules():
                if name:
                    module.register_forward_pre_hook(self._borrowing(path, name))
                    module.register_forward_hook(self._returning, always_call=True)
        setattr(network, _MARK, self)

    def to(self, device: torch.device) -> None:
        """Move what is outside the blocks; blocks are read onto the device from now on."""
        self._device = device
        for module in self._network.modules():
            for held in (module._parameters, module._buffers):
                for name, value in held.items():
                    if value is not None and not value.is_meta:
                        held[name] = like(value, value.to(device))

    def _entering(self, path: str, following: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any) -> None:
            ahead, self._ahead = self._ahead, None
            found = ahead[1].result() if ahead is not None and ahead[0] == path else self._read(path)
            _fill(module, found, self._device)
            del ahead, found
            if following != path:
                self._ahead = following, self._pool.submit(self._read, following)
            self.most_held = max(self.most_held, 1 + (self._ahead is not None))

        return hook

    def _leaving(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            empty(module)

        return hook

    def _borrowing(self, path: str, name: str) -> Callable[..., None]:
        """Return what reads a module `name` of a block that runs while the block itself does not."""

        def hook(module: nn.Module, args: Any) -> None:
            first = next(chain(module.parameters(), module.buffers()), None)
            if first is None or not first.is_meta:
                return
            found = self._ahead[1].result() if self._ahead is not None and self._ahead[0] == path else self._read(path)
            own = {key.removeprefix(f"{name}."): x for key, x in found.items() if key.startswith(f"{name}.")}
            _fill(module, own, self._device)
            self._borrowed.add(module)

        return hook

    def _returning(self, module: nn.Module, args: Any, output: Any) -> None:
        if module in self._borrowed:
            self._borrowed.discard(module)
            empty(module)


def offload_of(network: nn.Module) -> BlockOffload | None:
    """Return what reads the blocks of a network; None if it is held whole."""
    found = getattr(network, _MARK, None)
    return found if isinstance(found, BlockOffload) else None


def move(network: nn.Module, device: torch.device) -> None:
    """Move a network, or of one with offloaded blocks what is outside them."""
    offload = offload_of(network)
    if offload is None:
        network.to(device)
    else:
        offload.to(device)


def empty(block: nn.Module) -> None:
    """Put the parameters and stored buffers of a block on the meta device, in their memory layout."""
    stored = set(block.state_dict())
    for path, module in block.named_modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is not None and ".".join(filter(None, (path, name))) in stored:
                    held[name] = like(
                        value, torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
                    )


def _fill(block: nn.Module, found: Mapping[str, Tensor], device: torch.device) -> None:
    """Give a block its tensors, each in the memory layout and number format of the one on the meta device."""
    for name in block.state_dict():
        value = found[name]
        path, _, leaf = name.rpartition(".")
        module = block.get_submodule(path)
        held = module._parameters if leaf in module._parameters else module._buffers
        old = held[leaf]
        assert old is not None
        new = value.to(device, old.dtype)
        if new.stride() != old.stride():
            new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device).copy_(new)
        held[leaf] = like(old, new)


def like(old: Tensor, new: Tensor) -> Any:
    """Return a tensor, as a frozen parameter where the one that it replaces is a parameter."""
    return nn.Parameter(new, requires_grad=False) if isinstance(old, nn.Parameter) else new


def held_bytes(network: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a network that are in memory."""
    values = chain(network.parameters(), network.buffers())
    return sum(x.numel() * x.element_size() for x in values if not x.is_meta)
