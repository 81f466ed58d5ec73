import numpy as np
import pytest
import torch

from diffprobe.analysis.statistics import SumStatistic, bootstrap_interval, ratio
from diffprobe.core.errors import EmptyClass
from diffprobe.core.groups import Groups
from diffprobe.probes.caption import CaptionRegressor
from diffprobe.probes.caption.contrastive import Config as Contrastive
from diffprobe.probes.caption.mlp import Config
from diffprobe.training.caption_scores import Ratio, ScoredSplit, chance, group_intervals, score_split


def split(n=30, m=12, seed=0, order=None):
    draw = torch.Generator().manual_seed(seed)
    features, captions = torch.randn(n, 4, generator=draw), torch.randn(m, 3, generator=draw)
    rows = torch.arange(n) % m
    if order is not None:
        features, rows = features[order], rows[order]
    return ScoredSplit(features=features, captions=captions, caption=rows)


@pytest.mark.parametrize(("name", "config"), [("mlp", Config(hidden=5)), ("contrastive", Contrastive())])
def test_scores_equal_plain_loops_over_images_and_captions(name, config, monkeypatch):
    probe, data = CaptionRegressor(name, config, 4, 3), split()
    scores, rows = probe.scores(data.features, data.captions).tolist(), data.caption.tolist()
    captions, images = [], []
    for i, own in enumerate(rows):
        captions.append(sum(scores[i][j] >= scores[i][own] for j in range(12) if j != own))
        best = max(scores[k][own] for k in range(30) if rows[k] == own)
        images.append(sum(scores[k][own] >= best for k in range(30) if rows[k] != own))
    for block in (10**6, 25):
        monkeypatch.setattr("diffprobe.training.caption_scores._BLOCK", block)
        found = score_split(probe, data)
        for k in (1, 10):
            assert found[f"caption_recall_{k}"].above.tolist() == [float(rank < k) for rank in captions]
            assert found[f"image_recall_{k}"].above.tolist() == [float(rank < k) for rank in images]
    assert ("r2" in found) == (name == "mlp")


def test_r2_is_relative_to_the_training_mean():
    probe, data = CaptionRegressor("mlp", Config(hidden=5), 4, 3), split()
    mean = torch.tensor([0.2, 0.0, -0.1, 1.0])
    probe.standardise((mean, torch.tensor([1.0, 4.0, 0.0, 2.0])), (torch.zeros(3), torch.ones(3)))
    with torch.no_grad():
        expected = probe.features_of(data.captions)[data.caption]
    assert (expected[:, 2] == mean[2]).all()  # a dimension without spread keeps its mean
    error = (data.features - expected).square().sum() / (data.features - mean).square().sum()
    assert score_split(probe, data)["r2"].value == pytest.approx(1 - float(error), rel=1e-5)
    torch.nn.init.zeros_(probe.net[2].weight)
    torch.nn.init.zeros_(probe.net[2].bias)
    assert score_split(probe, data)["r2"].value == pytest.approx(0, abs=1e-6)


def test_the_order_of_samples_does_not_matter():
    probe = CaptionRegressor("mlp", Config(hidden=5), 4, 3)
    one, other = (score_split(probe, split(order=order)) for order in (None, torch.randperm(30)))
    assert all(one[name].value == pytest.approx(other[name].value, rel=1e-6) for name in one)


def test_a_tie_is_wrong():
    probe, data = CaptionRegressor("contrastive", Contrastive(), 4, 3), split(m=2)
    torch.nn.init.zeros_(probe.net.net.weight)
    torch.nn.init.zeros_(probe.net.net.bias)
    found = score_split(probe, data)
    assert found["caption_recall_1"].value == 0 and found["image_recall_1"].value == 0


def test_chance_is_that_of_random_orders():
    data = ScoredSplit(features=torch.zeros(9, 1), captions=torch.zeros(5, 1), caption=torch.arange(9) % 5)
    draw, hits = np.random.default_rng(0), {"caption_recall_1": 0.0, "image_recall_1": 0.0}
    for _ in range(4000):
        first = draw.permutation(9)[0]
        hits["image_recall_1"] += np.mean(data.caption.numpy() == data.caption[first].item()) / 4000
        hits["caption_recall_1"] += np.mean(data.caption.numpy() == draw.integers(5)) / 4000
    found = chance(data)
    assert all(found[name] == pytest.approx(value, abs=0.02) for name, value in hits.items())
    assert found["caption_recall_10"] == 1 and found["image_recall_10"] == 1


def test_intervals_are_those_of_the_statistics_package():
    draw = np.random.default_rng(0)
    one, other = (Ratio(draw.normal(1, 1, 40), draw.uniform(1, 2, 40)) for _ in range(2))
    names = np.arange(40) // 4
    settings = {"n_resamples": 200, "level": 0.9, "seed": 3}
    found, pairs = group_intervals({"a": one, "b": other}, Groups.of_values(names), **settings)
    expected = bootstrap_interval(SumStatistic(parts=np.stack(one, 1), value=ratio), names.tolist(), **settings)
    assert found["a"] == pytest.approx((expected.low, expected.high))
    assert pairs["a", "b"] == pytest.approx((-pairs["b", "a"][1], -pairs["b", "a"][0]))
    assert pairs["a", "b"][0] < one.value - other.value < pairs["a", "b"][1]
    assert group_intervals({"a": one}, Groups.of_values(np.zeros(40, dtype=np.int64)), **settings) == ({}, {})


def test_one_caption_cannot_be_retrieved():
    with pytest.raises(EmptyClass, match="'val' has 7 samples with 1 "):
        split(7, 1).require_several("val")
