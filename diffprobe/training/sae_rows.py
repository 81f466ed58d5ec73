"""From features to the rows that a sparse autoencoder trains on: places of maps, tokens, draws, several timesteps.

Owns the order of the rows, the refusal of cells that do not belong together, the choice of some rows of the training
set, and the buffer that mixes rows of several batches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch, RowBatch
from diffprobe.features.batch import RowValues as Rows
from diffprobe.features.row_layout import by_place, joint_width
from diffprobe.probes.sae.types import Collective

GATHERED_ROWS = 8192
"""Rows of each process that are brought together at a time for a checkpoint, so that no device holds all of them."""


def rows_of(batch: FeatureBatch | RowBatch, cells: Sequence[str]) -> Rows:
    """Stack the features of some cells of one tap as rows of equal width: cell after cell, within a cell by sample,
    then draw, then place row by row. A batch of single rows has them in its own order.

    A pooled cell [batch, d] gives a row a sample, a map [batch, channels, height, width] a row a place, tokens
    [batch, n, channels] a row a token; kept draws, the second axis, as many times that.

    Raises: ConfigError for cells of several taps or of different widths.
    """
    check_one_tap(cells)
    if isinstance(batch, RowBatch):
        return batch.rows(cells)
    parts = [by_place(batch.features[cell], cell) for cell in cells]
    parts = [part if part.ndim == 2 else part.flatten(0, -2) for part in parts]
    joint_width({cell: part.shape[1] for cell, part in zip(cells, parts, strict=True)})
    each = [len(part) // max(len(batch), 1) for part in parts]
    device = parts[0].device
    sample, number = [], []
    for i, n in enumerate(each):
        sample.append(torch.arange(len(batch), device=device).repeat_interleave(n))
        number.append((torch.arange(n, device=device) + sum(each[:i])).repeat(len(batch)))
    group = torch.arange(len(parts), device=device).repeat_interleave(
        torch.tensor([len(part) for part in parts], device=device)
    )
    return Rows(parts[0] if len(parts) == 1 else torch.cat(parts), group, torch.cat(sample), torch.cat(number))


def check_one_tap(cells: Sequence[str]) -> None:
    """Refuse no cells, and cells that one autoencoder can't share. Raises: ConfigError."""
    if not cells or len(set(cells)) < len(cells):
        raise ConfigError(f"a sparse autoencoder needs cells, each named once; got {list(cells)}.")
    parsed = [Cell.parse(cell) for cell in cells]
    for what, setting in (("tap", "features.taps"), ("condition", "features.condition"), ("pool", "features.pool")):
        found = list(dict.fromkeys(getattr(cell, what) for cell in parsed))
        if len(found) > 1:
            raise ConfigError(
                f"a sparse autoencoder reads cells of one {what}, at one or more timesteps; these have {len(found)}.",
                f"{setting}: {', '.join(found)}",
                *(["latents of different layers have nothing in common to share"] if what == "tap" else []),
                fix=f"probe.cell={parsed[0].tap}@t*:{parsed[0].condition}:{parsed[0].pool}",
            )


def row_ranks(seeds: Int[Tensor, " rows"], number: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Hash the seed of a row's sample and the row's number; where all numbers are 0 the seeds are the ranks.

    Source: the finaliser of SplitMix64 (Steele, Lea, Flood 2014), kept to 63 bits.
    """
    if not bool(number.any()):
        return seeds
    z = seeds + number * -7046029254386353131  # the constants are unsigned 64-bit numbers, written as signed ones
    z = (z ^ _shift(z, 30)) * -4658895280553007687
    z = (z ^ _shift(z, 27)) * -7723592293110705685
    return (z ^ _shift(z, 31)) & torch.iinfo(torch.int64).max


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts the sign in; this takes it out again


class ChosenRows:
    """The samples with the smallest hashes of their keys: the same ones in any order and on any number of processes.

    Args:
        n: how many; 0 for none.
        seed: another seed chooses others.
    """

    def __init__(self, n: int, *, seed: int) -> None:
        self.n, self.seed = n, seed
        self._rows: Tensor | None = None
        self._ranks: Tensor | None = None

    def update(self, x: Tensor, keys: Sequence[str], rows: Rows | None = None) -> None:
        """Add the samples `keys`, or the rows that they gave."""
        if self.n == 0:
            return
        ranks = torch.tensor([derive_seed("init", self.seed, key) for key in keys], device=x.device)
        if rows is not None:
            ranks = row_ranks(ranks[rows.sample], rows.number)
        if self._rows is None or self._ranks is None:
            self._rows, self._ranks = x, ranks
        else:
            self._rows, self._ranks = torch.cat([self._rows, x]), torch.cat([self._ranks, ranks])
        order = self._ranks.argsort()[: self.n]
        self._rows, self._ranks = self._rows[order], self._ranks[order]

    def compute(self, collective: Collective) -> Tensor | None:
        """Return the chosen samples of all processes; None where none are wanted."""
        if self._rows is None or self._ranks is None:
            return None
        rows, ranks = self._rows, self._ranks
        if collective.size > 1:
            longest = int(collective.gather(torch.tensor([len(ranks)], device=rows.device)).max())
            missing = longest - len(ranks)  # processes have unequal shares: fill up, and drop it again below
            rows = nn.functional.pad(rows, (0, 0, 0, missing))
            # not by pad: its value goes through a float, which rounds the largest integer out of range
            ranks = torch.cat([ranks, ranks.new_full((missing,), torch.iinfo(torch.int64).max)])
            rows = collective.gather(rows.flatten()).view(-1, rows.shape[1])
            ranks = collective.gather(ranks)
        order = ranks.argsort()[: self.n]
        return rows[order[ranks[order] < torch.iinfo(torch.int64).max]]


class ShuffleBuffer(nn.Module):
    """Rows held back, so that a training batch mixes rows of many images.

    It is filled once; after that each batch is exchanged for as many rows drawn from the buffer and the batch together,
    without repetition. What is drawn follows from (seed, number of batches so far, process) alone. Of several processes
    each holds an equal share and exchanges its own batches with it.

    The rows are no buffers of the module: DistributedDataParallel would give those of the first process to all. They
    travel in a checkpoint by `shares` and `restore`, so that a run that continues from it draws what the uninterrupted
    one draws.

    Args:
        size: rows held by all processes together.
        width: their width.
        seed: another seed mixes in another order.
    Raises: ConfigError for a size below 1.
    """

    def __init__(self, size: int, width: int, *, seed: int) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"a row buffer of {size} rows holds nothing; at least 1.")
        self.size, self.seed, self.drawn, self.filled = size, seed, 0, False
        self.rank, self.world_size = 0, 1
        self.held = torch.zeros(0, width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ShuffleBuffer":
        super()._apply(fn, recurse)
        self.held = fn(self.held)  # moves with the module all the same
        return self

    def place(self, rank: int, world_size: int) -> None:
        """Say which of how many processes this is. Raises: ConfigError if the rows can't be shared out equally."""
        if self.size % world_size:
            raise ConfigError(
                f"a row buffer of {self.size} rows can't be shared equally by {world_size} processes.",
                fix=f"probe.params.row_buffer={-(-self.size // world_size) * world_size}",
            )
        self.rank, self.world_size = rank, world_size

    @torch.no_grad()
    def fill(self, rows: Float[Tensor, "size width"]) -> None:
        """Take this process's share of the first rows, which are the same on all processes.

        Raises: ConfigError if they are not as many as the buffer holds.
        """
        if len(rows) != self.size:
            raise ConfigError(
                f"the row buffer holds {self.size} rows; the training set has {len(rows)}.",
                fix=f"probe.params.row_buffer={len(rows)} or less; 0 for no buffer",
            )
        self.held = rows[self.rank :: self.world_size].to(self.held).clone()
        self.filled = True

    @torch.no_grad()
    def exchange(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Take rows and give as many, drawn from all that are here. Raises: RunFailed if it was not filled."""
        if not self.filled:
            raise RunFailed("a row buffer was asked for rows before it was filled.", fix="call `fill` before training")
        size, of_process = len(self.held), (self.rank,) if self.rank else ()
        generator = torch.Generator().manual_seed(derive_seed("row buffer", self.seed, self.drawn, *of_process))
        order = torch.randperm(size + len(x), generator=generator).to(x.device)  # on the CPU: equal everywhere
        out, stay = order[: len(x)], order[len(x) :]
        leaving = out[out < size]
        entering = stay[stay >= size] - size  # as many as leave
        given = x.clone()
        given[: len(leaving)] = self.held[leaving].to(x.dtype)
        given[len(leaving) :] = x[out[out >= size] - size]
        self.held[leaving] = x[entering].to(self.held.dtype)
        self.drawn += 1
        return given

    @torch.no_grad()
    def shares(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the state of all processes, the rows share after share, on the CPU. All processes must call it.

        Args:
            gather: gives the tensors of all processes, of equal shape, behind each other.
        """
        parts = []
        for part in self.held.split(GATHERED_ROWS):
            whole = gather(part).unflatten(0, (self.world_size, -1))
            parts.append(whole.cpu() if self.rank == 0 else whole[:, :0].cpu())  # the first process writes the file
        held = torch.cat(parts, 1).flatten(0, 1)
        return {"held": held, "drawn": self.drawn, "filled": self.filled, "processes": self.world_size}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `shares` gave. Raises: ConfigError for another number of processes or rows."""
        held, processes = state["held"], state["processes"]
        if processes != self.world_size:
            raise ConfigError(
                f"the checkpoint has a row buffer in shares for {processes} processes; this run has {self.world_size}.",
                "the shares were filled and drawn from apart, so another number of processes can't continue them",
                fix=f"trainer.devices={processes}, or trainer.resume=false to start anew",
            )
        if state["filled"] and held.shape != (self.size, self.held.shape[1]):
            raise ConfigError(
                f"the checkpoint has a row buffer of shape {list(held.shape)}.",
                f"expected: {[self.size, self.held.shape[1]]}",
            )
        if state["filled"]:
            self.held = held.view(processes, -1, held.shape[1])[self.rank].to(self.held).clone()
        self.drawn, self.filled = state["drawn"], state["filled"]
