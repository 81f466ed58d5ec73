"""Codes of places: what is kept, and that neither order nor processes matter."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.latents.place_codes import PlaceCollector
from diffprobe.core.errors import ConfigError, NonFinite

N_LATENTS, N_PLACES, K = 7, 4, 2


def batch(n=30, n_maps=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(n, n_maps * N_PLACES, K, generator=generator) - 0.3
    indices = torch.rand(n, n_maps * N_PLACES, N_LATENTS, generator=generator).argsort(-1)[..., :K]
    return values, indices, [f"image-{i:02d}" for i in range(n)]


def dense(codes):
    found = np.zeros((len(codes.keys), N_PLACES, codes.n_latents))
    found[codes.row, codes.place, codes.latent] = codes.value
    return found


def collected(parts, max_images=100):
    collectors = []
    for values, indices, keys in parts:
        collectors.append(PlaceCollector(N_LATENTS, N_PLACES, max_images))
        collectors[-1].update(values, indices, keys)
    for other in collectors[1:]:
        collectors[0].merge(other)
    return collectors[0].result()


def test_a_place_has_the_largest_activation_of_its_maps():
    values, indices, keys = batch()
    expected = np.zeros((len(keys), N_PLACES, N_LATENTS))
    for i in range(len(keys)):
        for row in range(values.shape[1]):
            for value, latent in zip(values[i, row].tolist(), indices[i, row].tolist(), strict=True):
                place = row % N_PLACES
                expected[i, place, latent] = max(expected[i, place, latent], value)
    codes = collected([(values, indices, keys)])
    np.testing.assert_allclose(dense(codes), expected)
    assert codes.value.min() > 0
    for latent in range(N_LATENTS):
        own = codes.value[codes.starts[latent] : codes.starts[latent + 1]]
        assert (np.diff(own) <= 0).all()


@pytest.mark.parametrize("max_images", [100, 8])
def test_neither_order_nor_processes_matter(max_images):
    values, indices, keys = batch()
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(1))
    one = collected([(values, indices, keys)], max_images)
    shuffled = values[order], indices[order], [keys[i] for i in order]
    two = collected([tuple(part[a:b] for part in shuffled) for a, b in ((0, 11), (11, 30))], max_images)
    assert one.keys == two.keys and len(one.keys) == min(30, max_images)
    for name in ("row", "place", "latent", "value"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def test_images_can_be_left_out():
    codes = collected([batch()])
    kept = np.arange(len(codes.keys)) % 3 == 0
    part = codes.take(kept)
    assert part.keys == codes.keys[::3]
    np.testing.assert_array_equal(dense(part), dense(codes)[::3])


def test_what_does_not_fit_is_refused():
    values, indices, keys = batch(2)
    collector = PlaceCollector(N_LATENTS, N_PLACES)
    with pytest.raises(ConfigError, match="7, 2"):
        collector.update(values[:, :7], indices[:, :7], keys)
    with pytest.raises(ConfigError, match=r"0\.\.6"):
        collector.update(values.abs(), indices + 5, keys)
    with pytest.raises(NonFinite, match="image-00"):
        collector.update(values * torch.nan, indices, keys)
    collector.update(values, indices, keys)
    with pytest.raises(ConfigError, match="image-00"):
        collector.update(values, indices, keys)
    with pytest.raises(ConfigError, match="merged"):
        collector.merge(PlaceCollector(N_LATENTS, N_PLACES + 1))
    with pytest.raises(ConfigError, match="max_images=0"):
        PlaceCollector(1, 1, 0)
