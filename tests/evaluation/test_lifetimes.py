"""Lifetimes of latents: planted ones are found, and a run on a store is measured."""

import csv
import dataclasses
from types import SimpleNamespace

import pytest
import torch

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.core.result import read_result
from diffprobe.evaluation.lifetimes import (
    FIGURE_FILE,
    TABLE_FILE,
    LifetimesEvaluation,
    evaluate_lifetimes,
    lifetime_records,
    lifetimes_of,
)
from diffprobe.features.batch import FeatureTable
from diffprobe.probes.sae.timestep_topk import Config
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.trainer import make_trainer, quiet
from tests.toy import Toy

TIMES = (0, 100, 300, 700)
CELLS = tuple(f"mid_block@t{timestep}:empty:mean" for timestep in TIMES)
WIDTH, FACTORS = 24, 12
LIVES = {0: (700, 300), 1: (300, 100), 2: (100, 0)}
"""Remainder of a factor's number by 3 -> first and last timestep at which it is in the features."""
CONFIG = LifetimesEvaluation(experiment="tiny/lifetimes", device="cpu")


def planted(split: str) -> FeatureTable:
    """Rows of factors that live at some timesteps only, at a mean and scale that differ between timesteps."""
    truth = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=truth)).Q[:FACTORS]
    n = 600 if split == "train" else 300
    generator = torch.Generator().manual_seed(len(split))
    features = {}
    for cell, timestep in zip(CELLS, TIMES, strict=True):
        born, dead = (torch.tensor([LIVES[i % 3][end] for i in range(FACTORS)]) for end in (0, 1))
        alive = ((timestep <= born) & (timestep >= dead)).float()
        on = (torch.rand(n, FACTORS, generator=generator) < 0.2) * alive
        x = (on * (1 + torch.rand(n, FACTORS, generator=generator))) @ directions
        x = x + 0.02 * torch.randn(n, WIDTH, generator=generator)
        features[cell] = (1 + timestep / 100) * x + timestep / 50
    keys = [f"{split}/{i}" for i in range(n)]
    return FeatureTable(features, keys, torch.zeros(n, dtype=torch.long), {}, captions=[""] * n)


class Planted(Toy):
    def __init__(self):
        super().__init__(batch_size=64)
        self.cells, self.widths = CELLS, dict.fromkeys(CELLS, WIDTH)

    def table(self, split):
        return planted(split)


@pytest.fixture(scope="module")
def conditioned(tmp_path_factory):
    """An autoencoder over all timesteps, trained on the planted factors."""
    settings = TrainerConfig(accelerator="cpu", enable_progress_bar=False, max_epochs=25, learning_rate=0.01)
    config = Config(k=4, n_latents=24, dead_window=5000)
    module = SparseAutoencoderModule(config, cell=CELLS, d_in=WIDTH, settings=settings)
    with quiet():
        make_trainer(settings, run_dir=tmp_path_factory.mktemp("planted")).fit(module, datamodule=Planted())
    return module.sae.eval()


def source():
    return SimpleNamespace(iter_tables=lambda split: iter([planted(split)]))


@pytest.mark.slow
def test_planted_lifetimes_are_found(conditioned):
    found = lifetimes_of(conditioned, source(), "test", CELLS, CONFIG)
    truth = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=truth)).Q[:FACTORS]
    cosine, latent = (directions @ conditioned.W_dec.detach().T).max(1)
    assert int((cosine > 0.9).sum()) >= 10
    right = sum(
        (found.birth[number], found.death[number]) == LIVES[factor % 3]
        for factor, number in enumerate(latent.tolist())
        if cosine[factor] > 0.9
    )
    assert right >= 0.8 * int((cosine > 0.9).sum())


@pytest.mark.slow
def test_records_and_the_share_of_latents_without_a_life(conditioned):
    found = lifetimes_of(conditioned, source(), "test", CELLS, CONFIG)
    records = {record.name: record for record in lifetime_records(found, split="test", probe="p", detail={})}
    n = int(found.has_one.sum())
    assert records["lifetime_fraction"].value == pytest.approx(n / 24) and records["lifetime_fraction"].n == 24
    assert records["timesteps_alive"].value == pytest.approx(float(found.n_alive[found.has_one].mean()))
    assert sum(records["timesteps_alive"].detail["latents_by_peak"].values()) == n
    strict = dataclasses.replace(CONFIG, min_active=10**6)
    assert not lifetimes_of(conditioned, source(), "test", CELLS, strict).has_one.any()


@pytest.fixture(scope="module")
def trained(train_tiny):
    return train_tiny(
        "probe=timestep_topk", "probe.params.n_latents=32", "probe.params.k=4", "features.timesteps=[20,200,500]",
        "probe.cell=mid_block@t*",
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_is_measured_and_its_files_hold_every_latent(trained, tmp_path):
    config = dataclasses.replace(CONFIG, run=str(trained), output=str(tmp_path), min_active=1)
    (path,) = evaluate_lifetimes(config)
    result = read_result(path)
    assert result.kind == "sae_lifetimes" and result.config["run"] == trained.name
    names = [record.name for record in result.metrics]
    assert names == [
        "lifetime_fraction", "timesteps_alive", "single_timestep_fraction", "lasting_fraction", "peak_agreement",
    ]  # fmt: skip
    assert 0 <= result.metrics[-1].controls["chance"] <= 1
    rows = list(csv.DictReader((path.parent / TABLE_FILE).open()))
    assert len(rows) == 32
    for row in rows:
        strength = [float(row[f"strength@t{t}"]) for t in (20, 200, 500)]
        if row["peak"]:
            assert strength[(20, 200, 500).index(int(row["peak"]))] == max(strength)
            assert int(row["birth"]) >= int(row["peak"]) >= int(row["death"])
    assert (path.parent / FIGURE_FILE).read_text().startswith("<?xml")
    with pytest.raises(EmptyClass, match="100000"):
        evaluate_lifetimes(dataclasses.replace(config, min_active=100_000))


def test_a_run_of_one_timestep_is_refused(small_sae, tmp_path):
    with pytest.raises(ConfigError, match="one timestep .mid_block@t20"):
        evaluate_lifetimes(dataclasses.replace(CONFIG, run=str(small_sae), output=str(tmp_path)))
    with pytest.raises(ConfigError, match="share"):
        LifetimesEvaluation(experiment="x", share=0)
