"""Sharing out, for any numbers: once each in evaluation, equal batches in training."""

import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import ShardError
from diffprobe.shards.partition import ShardSlice, cut, limit_pieces, span_of_rank, span_of_worker, steps_per_epoch

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=5)
small = st.integers(1, 5)


def line_of(counts: list[int]) -> list[ShardSlice]:
    return [ShardSlice(f"s{i}", 0, count) for i, count in enumerate(counts)]


def positions(pieces: list[ShardSlice]) -> list[tuple[str, int]]:
    return [(piece.file, place) for piece in pieces for place in range(piece.start, piece.stop)]


@given(sizes, small, small, small)
def test_evaluation_reads_each_sample_once(counts: list[int], world: int, workers: int, batch: int) -> None:
    pieces, seen = line_of(counts), Counter[tuple[str, int]]()
    for rank in range(world):
        span = span_of_rank(sum(counts), rank, world, equal=False)
        n_batches = 0
        for worker in range(workers):
            start, stop = span_of_worker(span, worker, workers, batch)
            seen.update(positions(cut(pieces, start, stop)))
            n_batches += math.ceil((stop - start) / batch)
        assert n_batches == math.ceil((span[1] - span[0]) / batch)
    assert seen == Counter(positions(pieces))


@given(sizes, small, small, small)
def test_training_gives_every_rank_the_same(counts: list[int], world: int, workers: int, batch: int) -> None:
    pieces, seen, n = line_of(counts), Counter[tuple[str, int]](), sum(counts)
    for rank in range(world):
        span = span_of_rank(n, rank, world, equal=True)
        parts = [span_of_worker(span, worker, workers, batch) for worker in range(workers)]
        assert sum(math.ceil((stop - start) / batch) for start, stop in parts) == steps_per_epoch(n, world, batch)
        assert all(first[1] == second[0] for first, second in pairwise(parts))
        for start, stop in parts:
            seen.update(positions(cut(pieces, start, stop)))
    assert set(seen) == set(positions(pieces))
    assert seen.total() - n == math.ceil(n / world) * world - n < world


def test_past_the_end_the_line_begins_again() -> None:
    assert positions(cut(line_of([2, 1]), 4, 7)) == [("s0", 1), ("s1", 0), ("s0", 0)]


def test_limit_takes_the_first() -> None:
    assert positions(limit_pieces(line_of([2, 2]), 3)) == [("s0", 0), ("s0", 1), ("s1", 0)]
    assert limit_pieces(line_of([2]), 9) == limit_pieces(line_of([2]), None) == line_of([2])
    with pytest.raises(ShardError, match="limit=0"):
        limit_pieces(line_of([2]), 0)
