"""Order of samples and rows per rank: training by (seed, epoch), evaluation with each sample exactly once."""

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass
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


def balanced_order(
    values: Int[Tensor, " rows"], *, seed: int, epoch: int, rank: int = 0, world_size: int = 1
) -> Int[Tensor, " share"]:
    """Return this rank's row numbers for one epoch in which all values come equally often, to one row.

    An epoch has as many rows as there are rows with a value. The rows of a value are drawn without replacement until
    all of them were drawn, and then again, so that their numbers in an epoch differ by at most one. Order and ranks are
    as in `train_order`.

    Args:
        values: id of the value of each row; -1 for none, such rows are not drawn.

    Raises: EmptyClass if no row has a value.
    """
    generator = torch.Generator("cpu").manual_seed(derive_seed("balanced order", seed, epoch))
    n, found = int((values >= 0).sum()), values[values >= 0].unique()
    if not n:
        raise EmptyClass("no training sample has a value to balance.")
    few, n_more = divmod(n, len(found))
    drawn = []
    for place, value in enumerate(found[torch.randperm(len(found), generator=generator)]):
        rows, wanted = (values == value).nonzero().flatten(), few + (place < n_more)
        rounds = [rows[torch.randperm(len(rows), generator=generator)] for _ in range(-(-wanted // len(rows)))]
        drawn += [torch.cat(rounds)[:wanted]] if rounds else []
    order = torch.cat(drawn)[torch.randperm(n, generator=generator)]
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
