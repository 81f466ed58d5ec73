"""Bounded heaps against sorting everything."""

import pytest
import torch

from diffprobe.analysis.top_samples import TopSamples, top_samples
from diffprobe.core.errors import ConfigError, NonFinite

N, K, N_LATENTS = 60, 4, 12


@pytest.fixture
def codes():
    """Codes of 60 samples with many equal values, and zeros among them."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randint(0, 4, (N, K), generator=generator).float()
    indices = torch.stack([torch.randperm(N_LATENTS, generator=generator)[:K] for _ in range(N)])
    keys = [f"key-{i:02d}" for i in torch.randperm(N, generator=generator).tolist()]
    return values, indices, keys


def ref_top_samples(values, indices, keys, n_top):
    """Sort all activations of each latent: the larger first, then the earlier key."""
    lists = [[] for _ in range(N_LATENTS)]
    for row in range(len(keys)):
        for value, latent in zip(values[row].tolist(), indices[row].tolist(), strict=True):
            if value > 0:
                lists[latent].append((-value, keys[row]))
    return [[(key, -negative) for negative, key in sorted(entries)[:n_top]] for entries in lists]


def plain(result):
    return [[(sample.key, sample.activation) for sample in samples] for samples in result]


@pytest.mark.parametrize("n_top", [1, 5, 100])
def test_equals_sorting_everything(codes, n_top):
    values, indices, keys = codes
    stream = [(values[i : i + 7], indices[i : i + 7], keys[i : i + 7]) for i in range(0, N, 7)]
    assert plain(top_samples(stream, N_LATENTS, n_top)) == ref_top_samples(values, indices, keys, n_top)


def test_order_and_batching_of_the_stream_do_not_matter(codes):
    values, indices, keys = codes
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = [(values[order], indices[order], [keys[i] for i in order])]
    assert plain(top_samples(shuffled, N_LATENTS, 3)) == plain(top_samples([codes], N_LATENTS, 3))


def test_two_processes_merge_to_one(codes):
    values, indices, keys = codes
    halves = []
    for part in (slice(0, N, 2), slice(1, N, 2)):
        half = TopSamples(N_LATENTS, 3)
        half.update(values[part], indices[part], keys[part])
        halves.append(half)
    halves[0].merge(halves[1])
    assert plain(halves[0].result()) == plain(top_samples([codes], N_LATENTS, 3))


def test_a_selected_zero_is_no_activation():
    result = top_samples([(torch.tensor([[0.0, 2.0]]), torch.tensor([[0, 1]]), ["a"])], 2, 2)
    assert plain(result) == [[], [("a", 2.0)]]


def test_faults_are_named():
    top = TopSamples(2, 1)
    with pytest.raises(NonFinite, match="sample 'b'"):
        top.update(torch.tensor([[1.0], [float("nan")]]), torch.tensor([[0], [0]]), ["a", "b"])
    with pytest.raises(ConfigError, match="0..1"):
        top.update(torch.tensor([[1.0]]), torch.tensor([[2]]), ["a"])
    with pytest.raises(ConfigError, match="keys: 2"):
        top.update(torch.tensor([[1.0]]), torch.tensor([[0]]), ["a", "b"])
    with pytest.raises(ConfigError, match="n_latents x n_top"):
        top.merge(TopSamples(3, 1))
