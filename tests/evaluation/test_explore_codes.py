"""The stream of codes: all images once, in order, with the codes of their rows."""

import pytest
import torch

from diffprobe.evaluation import explore_codes
from diffprobe.evaluation.explore_codes import Rows, stream_codes
from tests.evaluation.planted_run import POOLED, SPATIAL, TIMESTEPS, planted_sae, planted_tables


@pytest.mark.parametrize(("cells", "n_rows"), [(POOLED, 1), (TIMESTEPS, 2), (SPATIAL, 6)])
def test_images_come_once_in_order_with_the_largest_activation_of_their_rows(cells, n_rows, monkeypatch):
    monkeypatch.setattr(explore_codes, "_ROWS", 4 * n_rows)
    tables, sae = planted_tables(50, cells=cells), planted_sae()
    keys, numbers = [], []
    for codes in stream_codes(sae, iter(tables), cells):
        keys += codes.keys
        numbers += range(codes.first, codes.first + len(codes.keys))
        assert 1 <= len(codes.keys) <= 4
        parts = list(codes.by_timestep())
        assert len(parts) == len(cells) and sum(len(values) for values, _ in parts) == n_rows * len(codes.keys)
        dense = torch.zeros(len(codes.keys) * n_rows, sae.n_latents)
        dense.scatter_add_(1, codes.row_code.indices, codes.row_code.values)
        largest = dense.view(len(codes.keys), n_rows, -1).amax(1)
        found = torch.zeros_like(largest).scatter_add_(1, codes.code.indices, codes.code.values)
        torch.testing.assert_close(found, largest)
    assert keys == [key for table in tables for key in table.keys] and numbers == list(range(50))


def test_a_map_has_the_activation_at_its_place():
    tables = planted_tables(12, cells=SPATIAL, n_shards=1)
    (codes,) = stream_codes(planted_sae(), tables, SPATIAL)
    assert codes.rows == Rows(timesteps=(20,), ends=(6,), map_size=(2, 3))
    style = codes.labels("style").tolist()
    for i in range(12):
        other = (style[i] + 1) % 3
        maps = codes.maps(i, [style[i], other])
        assert maps.shape == (2, 2, 3)
        assert maps[0].argmax() == i % 6 and maps[0].max() > 5 and maps[1].max() < 1


def test_captions_may_be_unknown():
    (table,) = planted_tables(6, n_shards=1)
    table.captions = []
    (codes,) = stream_codes(planted_sae(), [table], POOLED)
    assert codes.captions == [""] * 6 and codes.labels("class").tolist() == table.label.tolist()
