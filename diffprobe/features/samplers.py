"""Order of samples and rows per rank: training by (seed, epoch), evaluation with each sample exactly once."""

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed


def train_order(n: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> Int[Tensor, " share"]:
    """Return this rank's row numbers for one epoch: every `world_size`-th entry of one shuffle of all `n` rows.

    The shuffle depends on (seed, epoch) alone, so global batches do not depend on the number of ranks. All ranks get
    equal numbers of rows; if `world_size` does not divide `n`, fewer than `world_size` rows of the shuffle's beginning
    are repeated.
    """
    generator = torch.Generator("cpu").manual_seed(derive_seed("order", seed, epoch))
    order = torch.randperm(n, generator=generator)
    share = -(-n // world_size)
    padded = order.repeat(-(-share * world_size // n))[: share * world_size]
    return padded[rank::world_size]


class RowOrder:
    """One epoch's permutation of `n` rows, read in slices of this rank's share; it depends on (seed, epoch) alone.

    The order is that of `train_order`: every `world_size`-th entry, equal numbers of rows on all ranks, repeated rows
    where `world_size` does not divide `n`. It needs 4 bytes of memory per row, 8 from 2^31 rows.

    Args:
        n: number of rows, at least 1.
    """

    def __init__(self, n: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> None:
        generator = torch.Generator("cpu").manual_seed(derive_seed("order", seed, epoch))
        self._order = torch.randperm(n, generator=generator, dtype=torch.int32 if n < 2**31 else torch.int64)
        self._rank, self._world_size, self._share = rank, world_size, -(-n // world_size)

    def take(self, start: int, stop: int) -> Int[Tensor, " rows"]:
        """Return entries `start` to `stop` of this rank's share, fewer at its end."""
        places = torch.arange(start, min(stop, self._share)) * self._world_size + self._rank
        return self._order[places % len(self._order)].to(torch.int64)


def eval_order(n: int, *, rank: int = 0, world_size: int = 1) -> Int[Tensor, " share"]:
    """Return this rank's row numbers for evaluation; every row belongs to exactly one rank.

    Raises: ConfigError if a rank would get no row, which fails in Lightning's evaluation loop.
    """
    check_ranks(n, world_size)
    return torch.arange(rank, n, world_size)


def check_ranks(n: int, world_size: int) -> None:
    """Raise ConfigError if there are fewer samples than ranks."""
    if n < world_size:
        raise ConfigError(
            f"{n} samples are too few for {world_size} processes: one would have none.",
            fix=f"use at most trainer.devices={n}, or a split with more samples",
        )
