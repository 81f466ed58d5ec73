"""A planted dictionary from features to files: each factor has its latent, its number, its name; the others nothing."""

import base64
import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch

from diffprobe.analysis.latents.best_value import BestValueSettings
from diffprobe.analysis.latents.permutation_tests import PermutationSettings
from diffprobe.evaluation import explore as explore_module
from diffprobe.evaluation.explore import explore
from diffprobe.evaluation.explore_numbers import held_out_numbers
from diffprobe.evaluation.explore_settings import ExploreConfig
from diffprobe.evaluation.latent_numbers import NumberSettings
from diffprobe.features.batch import FeatureTable
from diffprobe.probes.sae.topk import Config, TopK
from diffprobe.report.explorer.writer import ExplorerWriter
from tests.evaluation.planted_run import POOLED, planted_run

FACTORS = {"style": ("flat", "oil", "ink"), "colour": ("red", "blue")}
VALUES = [(factor, value) for factor, values in FACTORS.items() for value in values]
"""Latent i reads dimension i, which is large for the i-th of these values; latents 5 to 7 read noise."""
D, N = 8, 200
SETTINGS = NumberSettings(best_value=BestValueSettings(permutations=PermutationSettings(most=200)))


def table(seed: int) -> FeatureTable:
    """Images of one style and one colour, captioned with both, in pairs of one drawing."""
    generator = torch.Generator().manual_seed(seed)
    labels = {name: torch.randint(0, len(values), (N,), generator=generator) for name, values in FACTORS.items()}
    x = torch.rand(N, D, generator=generator)
    rows = torch.arange(N)
    x[rows, labels["style"]] += 5
    x[rows, 3 + labels["colour"]] += 4
    captions = [
        f"a {FACTORS['colour'][c]} thing in {FACTORS['style'][s]}"
        for s, c in zip(labels["style"].tolist(), labels["colour"].tolist(), strict=True)
    ]
    return FeatureTable(
        {POOLED[0]: x}, [f"{seed}-{i:03d}" for i in range(N)], torch.full((N,), -1),
        {**labels, "drawing": rows // 2}, captions=captions, shards=["test-0000.tar"] * N,
    )  # fmt: skip


@pytest.fixture
def data(monkeypatch, tmp_path):
    """The data files of the explorer of the planted dictionary: facts, columns, texts, names."""
    sae = TopK(Config(k=3, n_latents=D), D, seed=0)
    with torch.no_grad():
        sae.W_dec.copy_(torch.eye(D))
        sae.W_enc.copy_(torch.eye(D))
    tables = {"train": table(1), "test": table(2)}
    run = planted_run([tables["test"]], sae=sae.eval())
    features = dataclasses.replace(
        run.features, classes=(), attributes={**FACTORS, "drawing": tuple(map(str, range(N // 2)))}, group="drawing",
        iter_tables=lambda split: iter([tables[split]]),
    )  # fmt: skip
    run = dataclasses.replace(run, features=features)
    monkeypatch.setattr(explore_module, "open_explored", lambda path, config, seeds=(): run)
    measure = partial(held_out_numbers, settings=SETTINGS)
    explore(["run"], ExploreConfig(device="cpu", n_top=8), ExplorerWriter(tmp_path / "out"), measures=[measure])
    text = (tmp_path / "out/data/0/run.js").read_text()
    return json.loads(text[text.index(",") + 1 : text.rindex(")")])


def column(data, key):
    found = next(one for one in data["columns"] if one["key"] == key)
    return np.frombuffer(base64.b64decode(found["values"]), dtype="<f8" if found["double"] else "<f4")


def test_each_factor_is_found_and_noise_is_not(data):
    (about,) = data["texts"]
    numbers = np.frombuffer(base64.b64decode(about["numbers"]), dtype="<i4")
    auroc, q, purity = (column(data, key) for key in ("auroc", "auroc_q", "purity"))
    for latent, (factor, value) in enumerate(VALUES):
        assert about["values"][numbers[latent]] == f"{factor} = {value}"
        assert auroc[latent] > 0.99 and q[latent] < 1e-6 and purity[latent] == 1
        assert data["names"][latent] and all(value in name.split() for name in data["names"][latent])
    assert column(data, "frequency")[5:].min() > 0.1  # they are active, on images of any style and colour
    assert (q[5:] > 0.05).all() and (auroc[5:] < 0.65).all()
    assert data["names"][5:] == [[], [], []]
