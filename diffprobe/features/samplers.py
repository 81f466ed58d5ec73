"""Which sample or row comes when, on which rank. Owns training order by (seed, epoch), evaluation exactly once."""

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed


def train_order(n: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> Int[Tensor, " share"]:
    """Return this rank's row numbers for one epoch: every `world_size`-th entry of one shuffle of all `n` rows.

    The shuffle depends on (seed, epoch) alone, so a global batch is the same whatever the number of ranks. Ranks get
    equally many rows; where `n` does not divide, the first rows of the shuffle come twice (fewer than `world_size`).
    """
    generator = torch.Generator("cpu").manual_seed(derive_seed("order", seed, epoch))
    order = torch.randperm(n, generator=generator)
    share = -(-n // world_size)
    padded = order.repeat(-(-share * world_size // n))[: share * world_size]
    return padded[rank::world_size]


class RowOrder:
    """One epoch's permutation of `n` rows, cut into this rank's batches. It follows from (seed, epoch) alone.

    As in `train_order`, whose order this is: every `world_size`-th entry is this rank's, ranks get equally many rows,
    and where `n` does not divide, the first rows come twice. It takes 8 bytes a row of memory, 4 below 2^31 rows.

    Args:
        n: rows, at least 1.
    """

    def __init__(self, n: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> None:
        generator = torch.Generator("cpu").manual_seed(derive_seed("order", seed, epoch))
        self._order = torch.randperm(n, generator=generator, dtype=torch.int32 if n < 2**31 else torch.int64)
        self._rank, self._world_size, self._share = rank, world_size, -(-n // world_size)

    def take(self, start: int, stop: int) -> Int[Tensor, " rows"]:
        """Return entries `start` to `stop` of this rank's share, or as many of them as there are."""
        places = torch.arange(start, min(stop, self._share)) * self._world_size + self._rank
        return self._order[places % len(self._order)].to(torch.int64)


def eval_order(n: int, *, rank: int = 0, world_size: int = 1) -> Int[Tensor, " share"]:
    """Return this rank's row numbers for evaluation: over all ranks, every row exactly once.

    Raises: ConfigError if a rank would get nothing, which Lightning's evaluation loop does not survive.
    """
    check_ranks(n, world_size)
    return torch.arange(rank, n, world_size)


def check_ranks(n: int, world_size: int) -> None:
    """Raise ConfigError if `n` samples do not reach for `world_size` ranks."""
    if n < world_size:
        raise ConfigError(
            f"{n} samples can't be shared by {world_size} processes: one would have none.",
            fix=f"use at most trainer.devices={n}, or a split with more samples",
        )
