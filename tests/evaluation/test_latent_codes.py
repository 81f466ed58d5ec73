"""Codes of a table with its columns: of an autoencoder and of baselines, pooled and with places."""

import numpy as np
import pytest
import torch

from diffprobe.analysis.latents.baselines import LinearCodes
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation import latent_codes as module
from diffprobe.evaluation.latent_codes import CLASS, autoencoder_codes, baseline_codes, baselines_of
from diffprobe.features.batch import FeatureTable
from diffprobe.probes.sae.topk import Config, TopK

CELL, SPATIAL = "mid_block@t20:empty:mean", "mid_block@t20:empty:none"
N, D, L, K = 23, 6, 24, 4


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    features = {CELL: torch.randn(N, D, generator=generator), SPATIAL: torch.randn(N, D, 2, 3, generator=generator)}
    order = torch.randperm(N, generator=generator).tolist()
    return FeatureTable(
        features, [f"key-{i:02d}" for i in order], torch.tensor(order) % 3 - 1,
        {"family": torch.tensor(order) // 4, "tone": torch.tensor(order) % 2}, captions=[f"caption {i}" for i in order],
    )  # fmt: skip


@pytest.fixture
def sae():
    return TopK(Config(k=K, n_latents=L), D, seed=0)


def dense(split):
    found = np.zeros((split.codes.n_images, split.codes.n_latents))
    found[split.codes.row, split.codes.latent] = split.codes.value
    return found


def flat(table, cell):
    return table.features[cell].reshape(N, D, -1).transpose(1, 2)  # (samples, places, width)


@pytest.mark.parametrize("cell", [CELL, SPATIAL])
def test_codes_have_the_columns_of_their_images(table, sae, cell):
    split = autoencoder_codes(sae, table, [cell], group="family")
    assert split.codes.keys == tuple(f"key-{i:02d}" for i in range(N))  # so image i is number i of the fixture
    assert set(split.targets) == {CLASS, "tone"}
    np.testing.assert_array_equal(split.targets[CLASS], np.arange(N) % 3 - 1)
    np.testing.assert_array_equal(split.targets["tone"], np.arange(N) % 2)
    assert split.groups.n == 6 and len(set(split.groups.ids[:4])) == 1
    assert list(split.captions) == [f"caption {i}" for i in range(N)] and split.embeddings is None
    with torch.no_grad():
        code = sae.encode(flat(table, cell).reshape(-1, D))
    rows = torch.zeros(len(code.values), L).scatter_reduce_(1, code.indices, code.values, "amax")
    expected = rows.view(N, -1, L).amax(1).numpy()[np.argsort(table.keys)]
    np.testing.assert_allclose(dense(split), expected, atol=1e-5)


@pytest.mark.parametrize("cell", [CELL, SPATIAL])
@pytest.mark.parametrize("batch", [4096, 7])
def test_baselines_are_the_largest_projections_over_places(table, cell, batch, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", batch)
    baselines = baselines_of(table, [cell], n_latents=L, k=K)
    assert {name: codes.n_latents for name, codes in baselines.items()} == {
        "raw neurons": 2 * D, "PCA components": 2 * D, "random dictionary": L,
    }  # fmt: skip
    x = flat(table, cell).double()
    torch.testing.assert_close(baselines["random dictionary"].centre, x.reshape(-1, D).mean(0))
    for codes in baselines.values():
        values, indices = codes.encode(x.reshape(-1, D))
        rows = torch.zeros(len(values), codes.n_latents, dtype=torch.float64).scatter_(1, indices, values)
        expected = rows.view(N, -1, codes.n_latents).amax(1).numpy()[np.argsort(table.keys)]
        np.testing.assert_allclose(dense(baseline_codes(codes, table, [cell])), expected, atol=1e-9)
    neurons = (x.reshape(-1, D) - x.reshape(-1, D).mean(0)) / x.reshape(-1, D).std(0, correction=0)
    torch.testing.assert_close(
        neurons.relu() @ torch.eye(D, dtype=torch.float64), _all(baselines["raw neurons"], x)[:, :D]
    )


def _all(codes, x):
    return ((x.reshape(-1, D) - codes.centre) @ codes.directions.T).relu()


def test_without_a_group_images_are_independent_and_embeddings_are_in_order(table, sae):
    embeddings = {key: np.full(2, float(key[-2:]), dtype=np.float32) for key in table.keys}
    split = autoencoder_codes(sae, table, [CELL], embeddings=embeddings, max_images=10)
    assert split.codes.n_images == 10 == split.groups.n and split.codes.n_seen == N
    assert set(split.targets) == {CLASS, "family", "tone"}
    assert split.embeddings[:, 0].tolist() == [float(key[-2:]) for key in split.codes.keys]


def test_bad_input_is_refused(table, sae):
    with pytest.raises(ConfigError, match="group 'genus' is not an attribute"):
        autoencoder_codes(sae, table, [CELL], group="genus")
    with pytest.raises(ConfigError, match="image 'key-00' has no embedding"):
        autoencoder_codes(sae, table, [CELL], embeddings={})
    with pytest.raises(ConfigError, match="features of width 6; the directions have 4"):
        baseline_codes(LinearCodes(torch.eye(4), torch.zeros(4), 1), table, [CELL])
