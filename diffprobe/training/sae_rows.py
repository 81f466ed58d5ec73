"""Rows on which a sparse autoencoder trains: from pooled vectors, places of maps, tokens, draws, several timesteps.

Contains the conversion of features to rows, the seeded choice of some rows of the training set, and the shuffle buffer
that mixes the rows of several batches.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import FeatureBatch, RowBatch, RowValues
from diffprobe.features.row_layout import by_place, joint_width
from diffprobe.probes.sae.types import Collective

GATHERED_ROWS = 8192
"""Rows per process that are gathered at a time for a checkpoint, so that no device holds all rows."""


def rows_of(batch: FeatureBatch | RowBatch, cells: Sequence[str]) -> RowValues:
    """Return the features of some cells of one tap as rows of equal width.

    Rows are ordered by cell, then sample, then draw, then place in row-major order; a batch of single rows keeps its
    own order. A pooled cell [batch, d] gives one row per sample, a map [batch, channels, height, width] one row per
    place, tokens [batch, n, channels] one row per token; each kept draw (second axis) gives rows of its own.

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
    return RowValues(parts[0] if len(parts) == 1 else torch.cat(parts), group, torch.cat(sample), torch.cat(number))


def check_one_tap(cells: Sequence[str]) -> None:
    """Raise ConfigError for no cells, repeated cells, and cells that differ in tap, condition or pooling."""
    if not cells or len(set(cells)) < len(cells):
        raise ConfigError(f"a sparse autoencoder needs at least one cell, and each cell once; got {list(cells)}.")
    parsed = [Cell.parse(cell) for cell in cells]
    for what, setting in (("tap", "features.taps"), ("condition", "features.condition"), ("pool", "features.pool")):
        found = list(dict.fromkeys(getattr(cell, what) for cell in parsed))
        if len(found) > 1:
            raise ConfigError(
                f"the cells of a sparse autoencoder must share one {what} (not the timestep); these have {len(found)}.",
                f"{setting}: {', '.join(found)}",
                *(["features of different layers have no common latents"] if what == "tap" else []),
                fix=f"probe.cell={parsed[0].tap}@t*:{parsed[0].condition}:{parsed[0].pool}",
            )


def row_ranks(seeds: Int[Tensor, " rows"], number: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
    """Return a hash of the seed of a row's sample and the number of the row; the seeds themselves if all numbers are 0.

    Source: finaliser of SplitMix64 (Steele, Lea, Flood 2014), truncated to 63 bits.
    """
    if not bool(number.any()):
        return seeds
    z = seeds + number * -7046029254386353131  # constants of 64 unsigned bits, written as signed integers
    z = (z ^ _shift(z, 30)) * -4658895280553007687
    z = (z ^ _shift(z, 27)) * -7723592293110705685
    return (z ^ _shift(z, 31)) & torch.iinfo(torch.int64).max


def _shift(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)  # torch shifts arithmetically: mask the copies of the sign bit


class ChosenRows:
    """The rows with the smallest hashes of their keys, independent of the order and the number of processes.

    Args:
        n: number of rows; 0 for none.
        seed: seed of the hashes.
    """

    def __init__(self, n: int, *, seed: int) -> None:
        self.n, self.seed = n, seed
        self._rows: Tensor | None = None
        self._ranks: Tensor | None = None

    def update(self, x: Tensor, keys: Sequence[str], rows: RowValues | None = None) -> None:
        """Add samples with their keys, or the rows that these samples gave."""
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
        """Return the chosen rows of all processes; None if n is 0."""
        if self._rows is None or self._ranks is None:
            return None
        rows, ranks = self._rows, self._ranks
        if collective.size > 1:
            longest = int(collective.gather(torch.tensor([len(ranks)], device=rows.device)).max())
            missing = longest - len(ranks)  # processes have unequal numbers of rows: pad, and drop the padding below
            rows = nn.functional.pad(rows, (0, 0, 0, missing))
            # not by pad: it converts its value to float, which rounds the largest integer out of range
            ranks = torch.cat([ranks, ranks.new_full((missing,), torch.iinfo(torch.int64).max)])
            rows = collective.gather(rows.flatten()).view(-1, rows.shape[1])
            ranks = collective.gather(ranks)
        order = ranks.argsort()[: self.n]
        return rows[order[ranks[order] < torch.iinfo(torch.int64).max]]


class ShuffleBuffer(nn.Module):
    """A buffer of rows, so that a training batch mixes rows of many images.

    It is filled once. Then each batch is exchanged for equally many rows, drawn without repetition from the buffer and
    the batch together. The draw depends only on (seed, number of batches so far, process). Each process holds an equal
    share of the rows and exchanges its own batches.

    The rows are not registered as buffers of the module, since DistributedDataParallel would broadcast those of the
    first process. `shares` and `restore` save and load them in checkpoints, so that a resumed run draws the same rows
    as an uninterrupted one.

    Args:
        size: number of rows over all processes.
        width: width of a row.
        seed: seed of the draws.
    Raises: ConfigError for a size below 1.
    """

    def __init__(self, size: int, width: int, *, seed: int) -> None:
        super().__init__()
        if size < 1:
            raise ConfigError(f"a row buffer of {size} rows; allowed: at least 1.")
        self.size, self.seed, self.drawn, self.filled = size, seed, 0, False
        self.rank, self.world_size = 0, 1
        self.held = torch.zeros(0, width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ShuffleBuffer":
        super()._apply(fn, recurse)
        self.held = fn(self.held)  # moves with the module, although it is not a registered buffer
        return self

    def place(self, rank: int, world_size: int) -> None:
        """Set rank and number of processes. Raises: ConfigError if the rows cannot be divided equally."""
        if self.size % world_size:
            raise ConfigError(
                f"a row buffer of {self.size} rows cannot be divided equally among {world_size} processes.",
                fix=f"probe.params.row_buffer={-(-self.size // world_size) * world_size}",
            )
        self.rank, self.world_size = rank, world_size

    @torch.no_grad()
    def fill(self, rows: Float[Tensor, "size width"]) -> None:
        """Fill the buffer with this process's share of `rows`, which are the same on all processes.

        Raises: ConfigError if the number of rows is not the size of the buffer.
        """
        if len(rows) != self.size:
            raise ConfigError(
                f"the row buffer has {self.size} rows; the training set has {len(rows)}.",
                fix=f"probe.params.row_buffer={len(rows)} or less; 0 for no buffer",
            )
        self.held = rows[self.rank :: self.world_size].to(self.held).clone()
        self.filled = True

    @torch.no_grad()
    def exchange(self, x: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        """Exchange rows for equally many, drawn from these and the buffer. Raises: RunFailed before `fill`."""
        if not self.filled:
            raise RunFailed(
                "the row buffer has no rows: `exchange` was called before `fill`.", fix="call `fill` before training"
            )
        size, of_process = len(self.held), (self.rank,) if self.rank else ()
        generator = torch.Generator().manual_seed(derive_seed("row buffer", self.seed, self.drawn, *of_process))
        order = torch.randperm(size + len(x), generator=generator).to(x.device)  # on the CPU: equal on all devices
        out, stay = order[: len(x)], order[len(x) :]
        leaving = out[out < size]
        entering = stay[stay >= size] - size  # as many as are leaving
        given = x.clone()
        given[: len(leaving)] = self.held[leaving].to(x.dtype)
        given[len(leaving) :] = x[out[out >= size] - size]
        self.held[leaving] = x[entering].to(self.held.dtype)
        self.drawn += 1
        return given

    @torch.no_grad()
    def shares(self, gather: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the state of all processes on the CPU, with rows in the order of ranks. All processes must call it.

        Args:
            gather: concatenates the tensors of all processes, of equal shape.
        """
        parts = []
        for part in self.held.split(GATHERED_ROWS):
            whole = gather(part).unflatten(0, (self.world_size, -1))
            parts.append(whole.cpu() if self.rank == 0 else whole[:, :0].cpu())  # the first process writes the file
        held = torch.cat(parts, 1).flatten(0, 1)
        return {"held": held, "drawn": self.drawn, "filled": self.filled, "processes": self.world_size}

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Load a state from `shares`. Raises: ConfigError for another number of processes or rows."""
        held, processes = state["held"], state["processes"]
        if processes != self.world_size:
            raise ConfigError(
                f"the checkpoint has a row buffer of {processes} processes; this run has {self.world_size}.",
                "each process draws from its own share, so the number of processes must stay the same",
                fix=f"trainer.devices={processes}, or trainer.resume=false to start from the beginning",
            )
        if state["filled"] and held.shape != (self.size, self.held.shape[1]):
            raise ConfigError(
                f"the checkpoint has a row buffer of shape {list(held.shape)}.",
                f"expected: {[self.size, self.held.shape[1]]}",
            )
        if state["filled"]:
            self.held = held.view(processes, -1, held.shape[1])[self.rank].to(self.held).clone()
        self.drawn, self.filled = state["drawn"], state["filled"]
