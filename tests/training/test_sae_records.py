import json

import pytest
import torch

from diffprobe.metrics.dead_latents import Dead
from diffprobe.metrics.decoder_coherence import Coherence, decoder_coherence
from diffprobe.metrics.density_histogram import density_histogram
from diffprobe.training.sae_records import coherence_records, split_records, window_record
from diffprobe.training.sae_scores import Scores

OWN = {"cell": "mid_block@t10:empty:mean", "probe": "topk", "detail": {"n_latents": 5, "k": 2}}


def test_each_number_says_what_it_was_counted_over():
    density = density_histogram(torch.tensor([0, 1, 10, 100, 100]), 100)
    values = {"fvu": 0.2, "explained_variance": 0.8, "dead_fraction": 0.2, "dense_fraction": 0.6, "gamma": 3.0}
    found = {record.name: record for record in split_records(Scores(values, 100, density), split="val", **OWN)}
    assert {name: record.value for name, record in found.items()} == values
    assert all(r.n == 100 and r.split == "val" and r.cell == OWN["cell"] and r.probe == "topk" for r in found.values())
    assert all(record.detail.items() >= OWN["detail"].items() for record in found.values())
    assert found["fvu"].controls == {"mean_prediction": 1.0} and found["gamma"].controls == {}
    assert found["dead_fraction"].detail["window"] == 100 and "this split" in found["dead_fraction"].detail["dead"]
    histogram = found["dense_fraction"].detail["histogram"]
    assert (histogram["log10_first_edge"], histogram["log10_bin_width"], histogram["n_never"]) == (-6, 0.25, 1)
    assert [i for i, count in enumerate(histogram["counts"]) if count] == [16, 20, 23]
    assert found["dense_fraction"].detail["dense"] == "active on 10% of the rows or more"
    assert json.loads(json.dumps(histogram)) == histogram


def test_dead_latents_of_training_say_their_window():
    mask = torch.tensor([True, False, False, False])
    record = window_record(Dead(mask.double().mean(), mask, 30, 400), **OWN)
    assert (record.name, record.value, record.n, record.split) == ("windowed_dead_fraction", 0.25, 400, "train")
    assert record.detail["window"] == 30 and "the last 30 rows of training" in record.detail["dead"]


def test_coherence_is_that_of_the_most_alike_rows():
    largest, mean = coherence_records(Coherence(0.9, 0.1, (3, 4)), d_in=16, **OWN)
    assert (largest.name, largest.value, largest.n) == ("decoder_coherence", 0.9, 5)
    assert largest.detail == {**OWN["detail"], "pair": [3, 4]} and largest.controls == {}
    assert (mean.name, mean.value, mean.n, mean.detail) == ("mean_decoder_coherence", 0.1, 5, OWN["detail"])
    rows = torch.nn.functional.normalize(torch.randn(1000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert mean.controls["random_direction"] == pytest.approx(decoder_coherence(rows).mean, rel=0.01)
