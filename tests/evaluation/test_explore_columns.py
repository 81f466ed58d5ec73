"""Columns of the table on planted latents: numbers, controls and what is missing."""

import numpy as np
import pytest
import torch

from diffprobe.evaluation.explore_columns import Similar, columns_of
from diffprobe.evaluation.explore_runs import OtherSeed
from tests.evaluation.planted_run import pass_over, planted_run, planted_sae, planted_tables


def columns(tables=None, n_top=8, **run):
    explored = planted_run(tables or planted_tables(60), **run)
    found = pass_over(explored, n_top=n_top, max_values=10)
    similar = Similar.of(explored, 3)
    return {column.key: column for column in columns_of(explored, found, similar, n_top)}, similar, found


def test_planted_latents_are_pure_and_above_their_control():
    found, _, passed = columns()
    purity, entropy = found["purity_style"], found["entropy_style"]
    assert purity.values[:3] == [1.0, 1.0, 1.0] and entropy.values[:3] == [0.0, 0.0, 0.0]
    ((name, chance),) = purity.controls
    assert name == "random images" and 0.33 < chance < 0.7
    assert found["frequency"].values == [n / 60 for n in passed.sums.n_active]
    assert 5 < found["max_activation"].values[0] < 6.001
    assert 1 < found["mean_activation"].values[0] < 6


def test_a_latent_that_is_never_active_has_a_frequency_and_no_other_number():
    found, *_ = columns()
    assert found["frequency"].values[5] == 0 and found["n_active"].values[5] == 0
    for key in ("mean_activation", "max_activation", "purity_style", "entropy_style", "purity_class"):
        assert found[key].values[5] is None


def test_a_label_of_one_value_has_no_purity():
    tables = planted_tables(30)
    for table in tables:
        table.label.fill_(0)
    found, *_ = columns(tables)
    assert "purity_style" in found and "purity_class" not in found


def test_recurrence_is_the_mean_over_seeds_of_the_matched_cosine():
    assert "recurrence" not in columns()[0]
    order = (3, 0, 1, 2, 5, 4)
    turned = planted_sae()
    with torch.no_grad():
        turned.W_dec[0] = torch.tensor([0.6, 0.8, 0, 0, 0, 0])
    seeds = (OtherSeed(name="seed 1", sae=planted_sae(order)), OtherSeed(name="seed 2", sae=turned))
    found, similar, _ = columns(seeds=seeds)
    values = found["recurrence"].values
    assert values[0] == pytest.approx((1 + 0.6) / 2) and values[2] == pytest.approx(1.0)
    ((name, control),) = found["recurrence"].controls
    assert name == "random directions" and 0.3 < control < 1
    assert [(one.run, one.latent) for one in similar.recurrence(2)] == [("seed 1", 3), ("seed 2", 2)]
    assert len(similar.neighbours(0)) == 3 and all(one.latent != 0 and one.run == "" for one in similar.neighbours(0))
    np.testing.assert_allclose(list(found["nearest_cosine"].values), 0.0, atol=1e-6)
