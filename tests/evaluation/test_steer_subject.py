"""What is steered is opened as edits of one tap, with controls of the same kind; bad choices are refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError, SplitLeak, StoreMismatch, UnknownName
from diffprobe.core.result import BACKBONE, read_result, write_result
from diffprobe.evaluation.steer_subject import (
    OWN,
    cell_of_reading,
    is_sae_run,
    open_direction,
    open_latents,
    open_neurons,
    read_cloud,
)
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.sae import KSAE
from diffprobe.scoring.edits.detect_and_replace import DetectAndReplace
from diffprobe.scoring.edits.latent import mean_activations
from tests.evaluation.page_runs import DIRECTION, SAE, SPATIAL, trainer

SHARED = {"split": "test", "n_random": 2, "seed": 0}


@pytest.fixture(scope="module")
def made(tiny_sd, tiny_shards, tmp_path_factory):
    """Return a pooled autoencoder, one of places, a direction, and the store of each."""
    found = {}
    for name, settings in (("pooled", (*SAE, "probe.params.k=4")), ("places", SPATIAL), ("direction", DIRECTION)):
        folder = tmp_path_factory.mktemp(name)
        run = trainer(tiny_sd, tiny_shards, folder)(*settings)
        found[name] = run, FeatureStore.open(next((folder / "stores").iterdir()))
    return found


def active(run, store, n=1):
    """Return the latents that are active most often in training, and the training rows."""
    sae = KSAE.from_pretrained(run / "probes" / "sae")
    (cell,) = store.cells
    x = store.load("train").features[cell]
    rows = x.movedim(1, -1).reshape(-1, x.shape[1]) if x.ndim == 4 else x
    code = sae.encode(rows)
    counts = torch.bincount(code.indices[code.values > 0], minlength=sae.n_latents)
    return sae, counts.argsort(descending=True)[:n].tolist(), rows


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pooled", "places"])
def test_latents_are_steered_in_mean_activations_of_training_rows(made, kind):
    run, store = made[kind]
    assert is_sae_run(run)
    sae, latents, rows = active(run, store, 2)
    subject = open_latents(run, store, latents, mode="add", **SHARED)
    assert list(subject.edits) == [OWN, "random 1", "random 2"]
    own = subject.edits[OWN]
    assert own.latents == tuple(latents)
    assert own.means == pytest.approx(mean_activations(sae, rows, latents), rel=1e-4)
    assert all(not set(latents) & set(subject.edits[name].latents) for name in ("random 1", "random 2"))
    assert subject.reading.pool == "mean" and subject.cell.pool == ("none" if kind == "places" else "mean")
    assert subject.target == f"latent {latents[0]}, {latents[1]}"
    cloud = read_cloud(store, "test", subject.cell, 1)
    assert cloud.features.shape[1] == len(subject.along) == sae.d_in
    row = sae.W_dec[latents].detach().double() * torch.tensor(own.means)[:, None]
    assert torch.cosine_similarity(row.sum(0), torch.from_numpy(subject.along), dim=0) > 0.999999


@pytest.mark.slow
def test_modes_give_the_edits_of_their_name(made):
    run, store = made["pooled"]
    _, (latent,), rows = active(run, store)
    assert open_latents(run, store, [latent], mode="ablate", **SHARED).edits[OWN].mode == "ablate"
    swapped = open_latents(run, store, [latent], mode="replace", **SHARED).edits[OWN]
    assert isinstance(swapped, DetectAndReplace) and len(swapped.bank) == len(rows)
    neurons = open_neurons(run, store, [3, 1], mode="add", **SHARED)
    assert neurons.edits[OWN].neurons == (3, 1) and len(neurons.edits["random 2"].neurons) == 2
    used = [one for edit in neurons.edits.values() for one in edit.neurons]
    assert len(set(used)) == 6 and neurons.target == "neuron 3, 1"
    assert set(neurons.along.nonzero()[0]) == {1, 3}
    replaced = open_neurons(run, store, [3], mode="replace", **SHARED).edits[OWN]
    assert float(replaced.detector(rows).float().mean()) == pytest.approx(0.1, abs=1 / len(rows))


@pytest.mark.slow
def test_a_direction_is_added_ablated_or_replaced_at_its_midpoint(made):
    run, store = made["direction"]
    folder = next((run / "probes").rglob("probe.json")).parent
    assert not is_sae_run(folder) and not is_sae_run(run)
    cloud = read_cloud(store, "test", Cell.parse(next(iter(store.cells))), 1)
    kinds = {mode: open_direction(folder, store, mode=mode, neighbours=1, **SHARED) for mode in ("add", "ablate")}
    vector = kinds["add"].edits[OWN].vector
    assert float(vector.norm()) == pytest.approx(cloud.spread(kinds["add"].along))
    assert float(kinds["add"].edits["random 1"].vector.norm()) == pytest.approx(float(vector.norm()))
    assert kinds["ablate"].edits[OWN].mean == pytest.approx(float((cloud.features @ kinds["add"].along).mean()))
    swapped = open_direction(folder, store, mode="replace", neighbours=1, **SHARED).edits[OWN]
    midpoint = json.loads((folder / "probe.json").read_text())["settings"]["midpoint"]
    assert swapped.detector.threshold == midpoint


def test_finished_images_are_read_in_a_cell_with_one_vector():
    assert cell_of_reading(Cell("mid_block", 20, pool="none")) == Cell("mid_block", 20, pool="mean")
    assert cell_of_reading(Cell("mid_block", 20, pool="grid2")) == Cell("mid_block", 20, pool="grid2")
    with pytest.raises(ConfigError, match="pool=max"):
        cell_of_reading(Cell("mid_block", 20, pool="max"))


def test_bad_choices_are_refused(made, tmp_path):
    run, store = made["pooled"]
    with pytest.raises(ConfigError, match="latent 32 is out of range: 0 to 31"):
        open_latents(run, store, [32], mode="add", **SHARED)
    with pytest.raises(ConfigError, match="neuron 999 is out of range"):
        open_neurons(run, store, [999], mode="add", **SHARED)
    with pytest.raises(ConfigError, match="one detector, but 2 latents"):
        open_latents(run, store, [0, 1], mode="replace", **SHARED)
    with pytest.raises(SplitLeak, match="trained on it"):
        open_latents(run, store, [0], mode="add", **{**SHARED, "split": "train"})
    with pytest.raises(UnknownName, match="split"):
        open_latents(run, store, [0], mode="add", **{**SHARED, "split": "tests"})
    with pytest.raises(StoreMismatch, match="mean"):  # a store of places for an autoencoder of means
        open_latents(run, made["places"][1], [0], mode="add", **SHARED)
    with pytest.raises(ConfigError, match="as many other neurons"):
        open_neurons(run, store, [0], mode="add", **{**SHARED, "n_random": 10_000})
    copy = shutil.copytree(run, tmp_path / "copy")
    result = read_result(copy / "result.json")
    write_result(replace(result, artifacts={**result.artifacts, BACKBONE: "0" * 64}), copy / "result.json")
    with pytest.raises(StoreMismatch, match="another backbone"):
        open_latents(copy, store, [0], mode="add", **SHARED)
