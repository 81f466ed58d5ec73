"""Ranges of latents, the merge of the largest ones, and the gradients of what processes exchange."""

import importlib.util
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffprobe.probes.sae.kernels.sparse_step import Top
from diffprobe.probes.sae.latent_shards import LatentShards, merge_top, shared_by_shards, sum_over_shards

_spec = importlib.util.spec_from_file_location("shard_threads", Path(__file__).parents[2] / "shard_threads.py")
threads = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(threads)


@given(size=st.integers(1, 9), n=st.integers(9, 100))
def test_ranges_cover_all_latents_and_differ_by_one_at_most(size, n):
    spans = [LatentShards(rank, size).span(n) for rank in range(size)]
    assert [i for span in spans for i in span] == list(range(n))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 4), k=st.integers(1, 7), data=st.data())
def test_the_largest_of_all_with_the_lower_of_equal_ones(size, k, data):
    h = torch.tensor(data.draw(st.lists(st.lists(st.integers(-2, 2), min_size=9, max_size=9), min_size=1, max_size=4)))
    h = h.float()

    def merge(shards):
        span = shards.span(9)
        values, indices = h[:, span.start : span.stop].sort(dim=1, descending=True, stable=True)
        width = min(k, 9 // size + (9 % size > 0))
        own = Top(values[:, :width], indices[:, :width])
        return merge_top(own, first=span.start, width=width, k=k, shards=shards)

    values, indices = h.sort(dim=1, descending=True, stable=True)
    for top in threads.in_threads(size, merge):
        assert top.values.equal(values[:, :k]) and top.indices.equal(indices[:, :k])


def test_nan_comes_first_so_that_the_loss_shows_it():
    top = Top(torch.tensor([[float("nan"), 2.0]]), torch.tensor([[1, 0]]))
    found = merge_top(top, first=0, width=2, k=1, shards=LatentShards())
    assert found.values.isnan().all() and found.indices.tolist() == [[1]]


def test_gradients_of_a_sum_over_processes_and_of_a_shared_value():
    def gradients(shards):
        shared = torch.tensor(3.0, requires_grad=True)
        own = torch.tensor(float(shards.rank + 1), requires_grad=True)
        total = sum_over_shards(shared_by_shards(shared, shards) * own, shards)
        total.square().backward()
        return total.item(), shared.grad.item(), own.grad.item()

    # (3 a + 3 b)^2 with a = 1, b = 2: d/ds = 2 * 9 * (a + b), d/da = d/db = 2 * 9 * 3
    assert threads.in_threads(2, gradients) == [(9.0, 54.0, 54.0)] * 2
    assert gradients(LatentShards()) == (3.0, 6.0, 18.0)
