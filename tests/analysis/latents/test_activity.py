"""Sums over a stream of codes against one dense matrix of activations."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.latents.activity import ActivitySums
from diffprobe.core.errors import ConfigError, NonFinite

N, K, N_LATENTS = 80, 4, 9
LABELS = {"class": 3, "style": 2}


@pytest.fixture
def codes():
    """Codes with zeros and repeated entries of value 0; latent 8 is never active, and some images have no label."""
    generator = torch.Generator().manual_seed(5)
    values = torch.rand(N, K, generator=generator) * 7
    values[values < 1.5] = 0.0
    indices = torch.stack([torch.randperm(N_LATENTS - 1, generator=generator)[:K] for _ in range(N)])
    indices = torch.where(values > 0, indices, 0)
    labels = {name: torch.randint(-1, n, (N,), generator=generator) for name, n in LABELS.items()}
    captions = ["" if i % 5 == 0 else f"caption {i}" for i in range(N)]
    return values, indices, labels, captions


def sums_of(codes, *parts):
    found = ActivitySums(N_LATENTS, LABELS, (25, 200))
    values, indices, labels, captions = codes
    for rows in parts or (np.arange(N),):
        chosen = {name: label[rows] for name, label in labels.items()}
        found.update(values[rows], indices[rows], chosen, [captions[i] for i in rows])
        for timestep in range(2):
            found.update_rows(timestep, values[rows] * (timestep + 1), indices[rows])
    return found


def plain(found):
    numbers = [
        found.n_images, found.n_captions, found.n_active, found.total, found.maximum, found.n_rows, found.row_active,
        found.row_total, [found.histograms.of(latent) for latent in range(N_LATENTS)],
    ]  # fmt: skip
    for label in found.by_label.values():
        numbers += [label.n_images, label.n_active, label.total]
    return [number.tolist() if isinstance(number, np.ndarray) else number for number in numbers]


def test_equals_one_dense_matrix(codes):
    values, indices, labels, captions = codes
    dense = np.zeros((N, N_LATENTS))
    np.add.at(dense, (np.arange(N)[:, None], indices.numpy()), values.numpy())
    found = sums_of(codes)
    assert found.n_images == N and found.n_captions == sum(map(bool, captions)) == 64
    np.testing.assert_array_equal(found.n_active, (dense > 0).sum(0))
    np.testing.assert_allclose(found.total, dense.sum(0), rtol=1e-6)
    np.testing.assert_allclose(found.maximum, dense.max(0))
    assert found.n_active[8] == 0 and found.histograms.of(8) == ([], 0.0)
    for name, n_values in LABELS.items():
        label = labels[name].numpy()
        for value in range(n_values):
            part = dense[label == value]
            assert found.by_label[name].n_images[value] == len(part)
            np.testing.assert_array_equal(found.by_label[name].n_active[:, value], (part > 0).sum(0))
            np.testing.assert_allclose(found.by_label[name].total[:, value], part.sum(0), rtol=1e-6)
    assert found.n_rows.tolist() == [N, N]
    np.testing.assert_array_equal(found.row_active, np.stack([(dense > 0).sum(0)] * 2, 1))
    np.testing.assert_allclose(found.row_total, np.stack([dense.sum(0), 2 * dense.sum(0)], 1), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_order_batches_and_processes_do_not_matter_to_the_last_bit(codes, seed):
    generator = np.random.default_rng(seed)
    order = generator.permutation(N)
    cut = int(generator.integers(1, N))
    first = sums_of(codes, *np.array_split(order[:cut], 3))
    second = sums_of(codes, *np.array_split(order[cut:], 5))
    second.merge(first)
    assert plain(second) == plain(sums_of(codes))


def test_bad_codes_are_named(codes):
    values, indices, labels, captions = codes
    found = ActivitySums(N_LATENTS, LABELS, (25,))
    with pytest.raises(NonFinite):
        found.update(torch.full((1, 1), torch.nan), torch.zeros(1, 1, dtype=torch.long),
                     {name: torch.zeros(1, dtype=torch.long) for name in LABELS})  # fmt: skip
    with pytest.raises(ConfigError, match="style"):
        found.update(values, indices, {"class": labels["class"]}, captions)
    with pytest.raises(ConfigError, match=r"9\.\.9 .*0\.\.8"):
        found.update_rows(0, torch.ones(1, 1), torch.full((1, 1), 9))
    with pytest.raises(ConfigError, match="200"):
        found.merge(ActivitySums(N_LATENTS, LABELS, (25, 200)))
    with pytest.raises(ConfigError, match="n_latents=0"):
        ActivitySums(0, {}, ())
