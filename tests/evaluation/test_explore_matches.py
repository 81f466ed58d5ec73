"""Matched latents of two runs: by decoder, by activations, and what cannot be matched."""

import pytest
import torch

from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.explore_matches import match_runs, shared_keys
from tests.evaluation.planted_run import POOLED, SPATIAL, planted_run, planted_sae, planted_tables

ORDER = (3, 0, 1, 2, 5, 4)


def test_runs_of_one_cell_are_matched_by_decoder_vectors():
    tables = planted_tables(20)
    matches, sentence = match_runs(planted_run(tables), planted_run(tables, sae=planted_sae(ORDER)), 10)
    assert [ORDER[match.other] for match in matches] == list(range(6))
    assert all(match.similarity == pytest.approx(1.0) for match in matches) and "cosine" in sentence


def test_spatial_and_pooled_runs_are_matched_by_activations_on_shared_images():
    first = planted_run(planted_tables(60))
    second = planted_run(planted_tables(60, cells=SPATIAL, n_shards=2), SPATIAL, sae=planted_sae(ORDER))
    matches, sentence = match_runs(first, second, 40)
    found = {match.latent: match for match in matches}
    for latent in range(3):
        assert ORDER[found[latent].other] == latent and found[latent].similarity > 0.9
    assert 5 not in found  # never active: nothing to correlate
    assert "correlation" in sentence and "40 shared images" in sentence and "pooled differently" in sentence


def test_runs_without_shared_images_cannot_be_matched():
    other = planted_tables(20, cells=SPATIAL)
    for table in other:
        table.keys = [f"other-{key}" for key in table.keys]
    with pytest.raises(ConfigError, match=r"share 0 images[\s\S]*mid_block@t20:empty:none"):
        match_runs(planted_run(planted_tables(20)), planted_run(other, SPATIAL), 100)


def test_shared_images_are_chosen_by_key_alone():
    tables = planted_tables(50)
    part = [table.select(torch.arange(len(table)).flip(0)) for table in tables[::-1]]
    run, other = planted_run(tables, POOLED), planted_run(part, POOLED)
    assert shared_keys(run, other, 20) == shared_keys(run, run, 20) and len(shared_keys(run, other, 20)) == 20
