"""Partition the samples of a split among ranks and loader workers, from the counts in the index.

The samples of a split form one sequence, shard after shard. Each rank reads one span of it, each worker a part of its
rank's span that consists of whole batches. Every sample is read once, for any number of ranks, workers and shards.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from diffprobe.core.errors import ShardError


@dataclass(frozen=True)
class ShardSlice:
    """Positions `start` to `stop` (exclusive) of one shard."""

    file: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def limit_pieces(pieces: Sequence[ShardSlice], limit: int | None) -> list[ShardSlice]:
    """Return the slices of the first `limit` samples; all for None. Raises: ShardError for a limit below 1."""
    if limit is None:
        return list(pieces)
    if limit < 1:
        raise ShardError(f"limit={limit} is out of range; allowed: None (all) or an integer from 1.")
    return cut(pieces, 0, min(limit, sum(map(len, pieces))))


def span_of_rank(n_samples: int, rank: int, world_size: int, *, equal: bool) -> tuple[int, int]:
    """Return the span (start, stop) of one rank.

    With `equal` every rank gets ceil(n / world_size) samples; the last spans may exceed the sequence, which `cut` then
    repeats. Otherwise each sample is in exactly one span, and the sizes of spans differ by at most one.

    >>> [span_of_rank(5, rank, 2, equal=False) for rank in range(2)]
    [(0, 2), (2, 5)]
    >>> [span_of_rank(5, rank, 2, equal=True) for rank in range(2)]
    [(0, 3), (3, 6)]
    """
    if equal:
        size = math.ceil(n_samples / world_size)
        return rank * size, (rank + 1) * size
    return rank * n_samples // world_size, (rank + 1) * n_samples // world_size


def span_of_worker(span: tuple[int, int], worker: int, n_workers: int, batch_size: int) -> tuple[int, int]:
    """Return the part of a rank's span for one worker: whole batches, except for the last batch of the rank.

    >>> [span_of_worker((10, 20), worker, 2, batch_size=4) for worker in range(2)]
    [(10, 14), (14, 20)]
    """
    start, stop = span
    n_batches = math.ceil((stop - start) / batch_size)
    first, last = (index * n_batches // n_workers for index in (worker, worker + 1))
    return start + first * batch_size, min(start + last * batch_size, stop)


def cut(pieces: Sequence[ShardSlice], start: int, stop: int) -> list[ShardSlice]:
    """Return the samples `start` to `stop` of the sequence as slices; past its end it repeats from the beginning.

    >>> pieces = [ShardSlice("a", 0, 3), ShardSlice("b", 0, 2)]
    >>> [(piece.file, piece.start, piece.stop) for piece in cut(pieces, 2, 6)]
    [('a', 2, 3), ('b', 0, 2), ('a', 0, 1)]
    """
    total = sum(map(len, pieces))
    found: list[ShardSlice] = []
    base = start // total * total if total else stop
    while base < stop:
        for piece in pieces:
            first, last = max(start - base, 0), min(stop - base, len(piece))
            if first < last:
                found.append(ShardSlice(piece.file, piece.start + first, piece.start + last))
            base += len(piece)
    return found


def steps_per_epoch(n_samples: int, world_size: int, batch_size: int) -> int:
    """Return the number of training batches per rank: ceil(ceil(n_samples / world_size) / batch_size).

    >>> steps_per_epoch(n_samples=10, world_size=3, batch_size=2)
    2
    """
    return math.ceil(math.ceil(n_samples / world_size) / batch_size)
