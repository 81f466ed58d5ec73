"""Codes of samples against one dense computation, with any size of batches."""

import pytest
import torch

from diffprobe.evaluation import sample_codes as module
from diffprobe.evaluation.sample_codes import dense_codes, largest_of_samples, sample_codes
from diffprobe.features.batch import FeatureTable
from diffprobe.probes.sae.topk import Config, TopK
from diffprobe.probes.sae.types import Code

CELL, SPATIAL = "mid_block@t20:empty:mean", "mid_block@t20:empty:none"
N, D, L = 11, 6, 24


@pytest.fixture
def table():
    generator = torch.Generator().manual_seed(0)
    features = {CELL: torch.randn(N, D, generator=generator), SPATIAL: torch.randn(N, D, 2, 3, generator=generator)}
    keys = [f"key-{i}" for i in range(N)]
    return FeatureTable(features, keys, torch.zeros(N, dtype=torch.long), {})


@pytest.fixture
def sae():
    return TopK(Config(k=4, n_latents=L), D, seed=0)


def gathered(codes):
    found = torch.zeros(N, L)
    for code, rows, _ in codes:
        found[rows] = torch.zeros(len(rows), L).scatter_reduce_(1, code.indices, code.values, "amax")
    return found


def test_the_code_of_a_sample_is_the_largest_of_its_rows():
    values = torch.tensor([[3.0, 1.0], [2.0, 0.0], [0.5, 0.0], [0.0, 0.0]])
    indices = torch.tensor([[0, 1], [1, 0], [2, 0], [0, 0]])
    code = largest_of_samples(Code(values, indices), n_samples=2, n_latents=3)
    dense = torch.zeros(2, 3).scatter_add_(1, code.indices, code.values)
    assert dense.tolist() == [[3.0, 2.0, 0.0], [0.0, 0.0, 0.5]]


@pytest.mark.parametrize("cell", [CELL, SPATIAL])
def test_streamed_codes_equal_dense_ones(table, sae, cell, monkeypatch):
    rows = table.features[cell].reshape(N, D, -1).transpose(1, 2).reshape(-1, D)
    with torch.no_grad():
        activation = sae.preactivations(rows).relu()
    largest = activation.view(N, -1, L).amax(1)
    kept = torch.where(activation >= activation.topk(4, dim=1).values[:, -1:], activation, 0.0).view(N, -1, L).amax(1)
    for batch in (1 << 20, 7):
        monkeypatch.setattr(module, "_ROWS", batch)
        monkeypatch.setattr(module, "_DENSE_VALUES", batch * L)
        torch.testing.assert_close(gathered(dense_codes(sae, table, [cell])), largest)
        torch.testing.assert_close(gathered(sample_codes(sae, table, [cell])), kept)


def test_a_batch_of_dense_codes_is_bounded(table, sae, monkeypatch):
    monkeypatch.setattr(module, "_DENSE_VALUES", 3 * L)
    assert [len(rows) for _, rows, _ in dense_codes(sae, table, [CELL])] == [3, 3, 3, 2]
