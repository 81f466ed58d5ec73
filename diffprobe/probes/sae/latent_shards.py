"""The processes that share the latents of one autoencoder: what each holds, and what they exchange in a step.

Each process has the encoder and decoder rows of a range of latents, and sees the same samples as the others. From each
sample's k largest latents of every range follow the k largest of all: only these are exchanged, and the sums of decoder
rows.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae.kernels.sparse_step import Top

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
"""Type of the weights -> integers of the same width, in which values and latents travel together."""

_Found = TypeVar("_Found")


class LatentShards:
    """All processes of a run, each of which holds a range of the latents. The collectives are those of torch.

    Args:
        rank: number of this process.
        size: number of processes.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    def span(self, n_latents: int, rank: int | None = None) -> range:
        """Return the latents of a process, of this one by default: rank n // size up to (rank + 1) n // size.

        Raises: ConfigError if there are fewer latents than processes.

        >>> [LatentShards(rank, 3).span(10) for rank in range(3)]
        [range(0, 3), range(3, 6), range(6, 10)]
        """
        if n_latents < self.size:
            raise ConfigError(
                f"{n_latents} latents are too few for {self.size} processes that share them.",
                fix="a smaller trainer.devices, or more latents",
            )
        rank = self.rank if rank is None else rank
        return range(rank * n_latents // self.size, (rank + 1) * n_latents // self.size)

    def gather(self, x: Tensor) -> Tensor:
        """Return the tensors of all processes, of one shape, stacked in the order of ranks; without gradients."""
        if self.size == 1:
            return x.detach()[None]
        parts = [torch.empty_like(x) for _ in range(self.size)]
        torch.distributed.all_gather(parts, x.detach().contiguous())
        return torch.stack(parts)

    def gather_objects(self, mine: _Found) -> list[_Found]:
        """Return what all processes have found, in the order of ranks: plain values."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(found, mine)
        return found

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes, equal bit for bit on each; without gradients."""
        found = x.detach().clone(memory_format=torch.contiguous_format)
        if self.size > 1:
            torch.distributed.all_reduce(found)
        return found

    def broadcast(self, x: Tensor, source: int) -> Tensor:
        """Return the tensor of process `source`; `x` has its shape and type on the others. Without gradients."""
        found = x.detach().contiguous()
        if self.size > 1:
            torch.distributed.broadcast(found, source)
        return found


def sum_over_shards(x: Tensor, shards: LatentShards) -> Tensor:
    """Return the sum over processes of what each has a part of. The gradient reaches every part unchanged.

    For values from which each process computes the same loss.
    """
    found: Tensor = _Sum.apply(x, shards)  # type: ignore[no-untyped-call]
    return found


def shared_by_shards(x: Tensor, shards: LatentShards) -> Tensor:
    """Return a value that all processes have, for use in each one's part: its gradient is the sum of theirs."""
    found: Tensor = _Shared.apply(x, shards)  # type: ignore[no-untyped-call]
    return found


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: LatentShards) -> Tensor:
        return shards.total(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, None


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shards: LatentShards) -> Tensor:
        ctx.shards = shards
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return ctx.shards.total(g), None


def merge_top(own: Top, *, first: int, width: int, k: int, shards: LatentShards) -> Top:
    """Return the k largest of the latents of all processes, from the largest of each; equal on all. Collective.

    Args:
        own: the largest latents of this process, numbered from its own first one; at most `width`.
        first: number of this process's first latent.
        width: latents per sample that each process sends; the same on all.
        k: latents to keep. Of equal values the lower latent is kept.
    """
    values, latents = own.values, own.indices + first
    dtype, missing = values.dtype, width - values.shape[1]
    integers = _INTEGERS[dtype]
    if missing:  # the largest number, which no latent has, so that padding comes last
        values = F.pad(values, (0, missing), value=-torch.inf)
        latents = F.pad(latents, (0, missing), value=torch.iinfo(integers).max)
    sent = torch.stack([values.contiguous().view(integers), latents.to(integers)])
    found = shards.gather(sent)  # shards, 2, batch, width
    values, latents = (part.permute(1, 0, 2).flatten(1) for part in found.unbind(1))
    values, latents = _by_value(values.contiguous().view(dtype), latents.long())
    return Top(values[:, :k].contiguous(), latents[:, :k].contiguous())


def _by_value(
    values: Float[Tensor, "batch found"], latents: Int[Tensor, "batch found"]
) -> tuple[Float[Tensor, "batch found"], Int[Tensor, "batch found"]]:
    """Sort by falling value, equal values by latent."""
    latents, order = latents.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, latents.gather(1, order)
