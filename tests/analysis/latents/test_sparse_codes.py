"""Codes collected from a stream: independent of batches, order and processes, and bounded."""

import tracemalloc

import numpy as np
import pytest
import torch

from diffprobe.analysis.latents.sparse_codes import CodeCollector
from diffprobe.core.errors import ConfigError, NonFinite
from tests.analysis.latents.planted_codes import collected, update


def dense(n=90, m=7, seed=0):
    generator = np.random.default_rng(seed)
    return np.where(generator.random((n, m)) < 0.4, generator.integers(1, 5, (n, m)), 0).astype(np.float64)


def keys_of(n):
    return [f"image-{i:03d}" for i in range(n)]


def same(one, other):
    assert one.keys == other.keys and one.n_seen == other.n_seen
    for name in ("row", "latent", "value"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_the_codes_are_those_of_the_dense_matrix():
    matrix = dense()
    codes = collected(matrix, keys_of(90), k=7)
    back = np.zeros_like(matrix)
    back[codes.row, codes.latent] = codes.value
    np.testing.assert_array_equal(back, matrix)
    np.testing.assert_array_equal(codes.n_active, (matrix > 0).sum(0))
    for latent, rows in enumerate(codes.top_rows(4)):
        expected = sorted(np.flatnonzero(matrix[:, latent]), key=lambda i: (-matrix[i, latent], i))[:4]
        assert rows.tolist() == expected


@pytest.mark.parametrize("max_images", [1000, 20])
def test_batches_order_and_processes_do_not_matter(max_images):
    matrix, keys = dense(), keys_of(90)

    def stream(rows, batch):
        collector = CodeCollector(7, max_images)
        for part in np.array_split(rows, max(1, len(rows) // batch)):
            update(collector, matrix[part], [keys[i] for i in part], k=7)
        return collector

    whole = stream(np.arange(90), 90).result()
    same(stream(np.random.default_rng(1).permutation(90), 4).result(), whole)
    first, second = stream(np.arange(0, 90, 2), 7), stream(np.arange(1, 90, 2), 11)
    first.merge(second)
    same(first.result(), whole)
    assert whole.n_images == min(90, max_images) and whole.n_seen == 90


def test_memory_is_bounded_by_the_sample():
    collector = CodeCollector(3, max_images=10)
    for start in range(0, 5000, 50):
        collector.update(torch.ones(50, 1), torch.zeros(50, 1, dtype=torch.long), [str(start + i) for i in range(50)])
        assert len(collector._keys) <= 20 + 50
        assert sum(len(row) for row, *_ in collector._parts) <= 20 + 50
    assert collector.result().n_images == 10


def test_peak_memory_is_flat_in_the_images():
    def peak(n):
        collector = CodeCollector(50, max_images=200)
        tracemalloc.start()
        for start in range(0, n, 100):
            update(collector, dense(100, 50, seed=start), [f"{start + i:06d}" for i in range(100)], k=50)
        collector.result()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    small, large = peak(1000), peak(10_000)
    assert large < 1.2 * small


def test_a_part_of_the_images_is_as_if_collected_alone():
    matrix, keys = dense(), keys_of(90)
    kept = np.random.default_rng(2).random(90) < 0.5
    part = collected(matrix, keys, k=7).take(kept)
    alone = collected(matrix[kept], [key for key, stays in zip(keys, kept, strict=True) if stays], k=7)
    assert part.keys == alone.keys
    np.testing.assert_array_equal(part.row, alone.row)
    np.testing.assert_array_equal(part.value, alone.value)


def test_bad_codes_are_refused():
    collector = CodeCollector(3)
    one = torch.ones(1, 2)
    with pytest.raises(ConfigError, match="latents 0..3 in a code; allowed: 0..2"):
        collector.update(one, torch.tensor([[0, 3]]), ["a"])
    with pytest.raises(ConfigError, match="twice for one image"):
        collector.update(one, torch.tensor([[1, 1]]), ["a"])
    with pytest.raises(NonFinite, match="image 'a'"):
        collector.update(one * torch.nan, torch.tensor([[0, 1]]), ["a"])
    with pytest.raises(ConfigError, match="one key per row"):
        collector.update(one, torch.tensor([[0, 1]]), ["a", "b"])
    for _ in range(2):
        collector.update(one, torch.tensor([[0, 1]]), ["a"])
    with pytest.raises(ConfigError, match="image 'a' came twice"):
        collector.result()
    with pytest.raises(ConfigError, match="cannot be merged"):
        collector.merge(CodeCollector(4))
    with pytest.raises(ConfigError, match="max_images=0"):
        CodeCollector(3, 0)
