"""Which sample comes when, on which rank. Owns training order by (seed, epoch), evaluation exactly once."""

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
