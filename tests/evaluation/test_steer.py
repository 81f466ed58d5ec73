"""Steering from a saved direction, with a tiny model and the store that the direction was estimated on."""

import csv
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from diffprobe.core.errors import ConfigError, StoreMismatch, UnknownName
from diffprobe.core.result import read_result
from diffprobe.evaluation.steer import GRID_FILE, TABLE_FILE, SteerConfig, image_grid, steer, unit_of
from diffprobe.features.reader import FeatureStore
from diffprobe.probes.direction import Direction
from diffprobe.probes.sae import KSAE
from tests.evaluation.page_runs import DIRECTION, SPATIAL, trainer

SMALL = {"prompts": ("a red heart", "a cat"), "strengths": (-2.0, 0.0, 2.0), "seeds": 2, "sampling_steps": 3,
         "n_random": 1, "n_resamples": 20, "neighbours": 1}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny_sd, tiny_shards, tmp_path_factory):
    return trainer(tiny_sd, tiny_shards, tmp_path_factory.mktemp("steer"))(*DIRECTION)


@pytest.fixture
def saved(run):
    return next((run / "probes").rglob("probe.json")).parent


@pytest.fixture
def config(run, tiny_sd):
    store = next((run.parents[2] / "stores").iterdir())
    return {"generator": str(tiny_sd), "store": str(store), **SMALL}


@pytest.mark.slow
def test_images_table_and_result_are_written(saved, config, tmp_path):
    found, path = steer(saved, SteerConfig(**config), output=tmp_path)
    assert list(found.doses) == ["steered", "random 1"] and not found.notes
    own = found.doses["steered"]
    assert [dose.strength for dose in own] == [-2, 0, 2]
    assert own[1].moved["steered"].estimate == 0
    assert own[0].moved["steered"].estimate != own[2].moved["steered"].estimate
    records = read_result(path).metrics
    assert {(one.name, one.probe, one.detail["strength"]) for one in records} == {
        (name, probe, s) for name in ("moved", "distance") for probe in found.doses for s in (-2, 0, 2)
    }
    assert all(one.n == 4 for one in records)
    with path.with_name(TABLE_FILE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == pytest.approx([one.value for one in records])
    with Image.open(path.with_name(GRID_FILE)) as grid:
        side = 16 * (grid.width // 3 // 16)  # three columns
        assert grid.width == 3 * (side + 2) + 2 and grid.height > 4 * side
    again, other = steer(saved, SteerConfig(**config), output=tmp_path)
    assert other == path and again.doses == found.doses


@pytest.mark.slow
def test_seeds_are_shared_and_strength_zero_is_the_untouched_model(saved, config, tmp_path):
    few, _ = steer(saved, SteerConfig(**{**config, "n_random": 0, "seeds": 1}), output=tmp_path)
    windowed, _ = steer(
        saved, SteerConfig(**{**config, "n_random": 0, "seeds": 1, "window": (0, 400)}), output=tmp_path
    )  # fmt: skip
    assert few.doses["steered"][1] == windowed.doses["steered"][1]
    assert few.doses["steered"][2] != windowed.doses["steered"][2]


@pytest.mark.slow
def test_other_directions_are_measured_on_the_same_images(saved, config, tmp_path):
    own = Direction.load(saved)
    vector = torch.nn.functional.normalize(torch.arange(len(own.vector)).float(), dim=0)
    facts = {"scale": 1.0, "midpoint": 0.0, "positive": "1", "negative": "0", "estimator": "mean_difference"}
    other = Direction(vector=vector, target="other", cell=own.cell, **facts)
    other.save(tmp_path / "other")
    found, _ = steer(saved, SteerConfig(**{**config, "others": (str(tmp_path / "other"),)}), output=tmp_path)
    assert set(found.doses["steered"][0].moved) == {"steered", "other"}
    Direction(vector=vector, target="other", cell="up_blocks.0@t200:empty:mean", **facts).save(tmp_path / "wrong")
    with pytest.raises(ConfigError, match="of cell 'up_blocks.0@t200:empty:mean'"):
        steer(saved, SteerConfig(**{**config, "others": (str(tmp_path / "wrong"),)}), output=tmp_path)


@pytest.mark.slow
def test_a_store_of_another_model_is_refused(saved, config, tiny_sd, tmp_path):
    copy = shutil.copytree(tiny_sd, tmp_path / "copy")
    weights = next((copy / "unet").glob("*.safetensors"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, weights)
    with pytest.raises(StoreMismatch, match="another model"):
        steer(saved, SteerConfig(**{**config, "generator": str(copy)}), output=tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"generator": ""}, "generator"),
        ({"prompts": ()}, "0 prompts"),
        ({"strengths": (0.0, 1.0)}, "at least three"),
        ({"branch": "both"}, "no effect without guidance"),
        ({"window": (5, 1)}, "window"),
        ({"seeds": 0}, "seeds"),
    ],
)
def test_bad_settings_are_refused(config, change, message):
    with pytest.raises(ConfigError, match=message):
        SteerConfig(**{**config, **change})


def test_the_grid_names_strengths_and_separates_prompts():
    images = {s: [Image.new("RGB", (8, 8), (40 * i, 0, 0)) for i in range(4)] for s in (1.0, 0.0, -1.0)}
    grid = np.asarray(image_grid(images, 2))
    assert grid.shape == (14 + 4 * 10 + 2 * 2, 3 * 10 + 2, 3)
    assert (grid[14:22, 2:10] == [0, 0, 0]).all() and (grid[14 + 2 * 10 + 2 : 14 + 2 * 10 + 10, 2] == [80, 0, 0]).all()
    assert (grid[14 + 18 : 14 + 22] == 255).all()  # the wider gap between prompts


@pytest.fixture(scope="module")
def places(tiny_sd, tiny_shards, tmp_path_factory):
    """Return an autoencoder of places, with settings of steering."""
    folder = tmp_path_factory.mktemp("places")
    run = trainer(tiny_sd, tiny_shards, folder)(*SPATIAL)
    return run, {"generator": str(tiny_sd), "store": str(next((folder / "stores").iterdir())), **SMALL}


@pytest.mark.slow
def test_latents_and_neurons_of_a_run_are_steered(places, tmp_path):
    run, config = places
    sae = KSAE.from_pretrained(run / "probes" / "sae")
    x = next(iter(FeatureStore.open(config["store"]).load("train").features.values()))
    code = sae.encode(x.movedim(1, -1).reshape(-1, x.shape[1]))
    latent = int(torch.bincount(code.indices[code.values > 0]).argmax())
    added, path = steer(run, SteerConfig(**config, latent=latent), output=tmp_path)
    assert list(added.doses) == ["steered", "random 1"]
    records = read_result(path).metrics
    assert {one.target for one in records if one.probe == "steered"} == {f"latent {latent}", None}
    assert {one.cell for one in records} == {"mid_block@t20:empty:mean"}
    up, down = added.doses["steered"][2], added.doses["steered"][0]
    assert up.moved["steered"].estimate != down.moved["steered"].estimate
    again, same = steer(run, SteerConfig(**config, latent=latent), output=tmp_path)
    assert same == path and again.doses == added.doses
    shares = {**config, "strengths": (-1.0, 0.0, 1.0), "mode": "ablate"}
    ablated, other = steer(run, SteerConfig(**shares, latent=latent), output=tmp_path)
    assert other != path and ablated.doses["steered"][1] == added.doses["steered"][1]
    neuron, _ = steer(run, SteerConfig(**config, neuron=(0, 3)), output=tmp_path)
    assert neuron.doses["steered"][2] != added.doses["steered"][2]


def test_settings_that_do_not_fit_what_is_steered_are_refused(places, saved, config, tmp_path):
    run, given = places
    with pytest.raises(ConfigError, match="what of it is steered"):
        steer(run, SteerConfig(**given), output=tmp_path)
    with pytest.raises(ConfigError, match="latent has no effect"):
        steer(saved, SteerConfig(**config, latent=3), output=tmp_path)
    with pytest.raises(ConfigError, match="latent and neuron are both given"):
        SteerConfig(**given, latent=3, neuron=1)
    with pytest.raises(ConfigError, match="shares, from -1 to 1"):
        SteerConfig(**given, latent=3, mode="ablate")
    with pytest.raises(UnknownName, match="mode"):
        SteerConfig(**given, latent=3, mode="swap")


def test_the_unit_of_strength_is_named(config):
    assert "mean activations" in unit_of(SteerConfig(**config, latent=3))
    assert "neuron" in unit_of(SteerConfig(**config, neuron=3))
    assert "along the direction" in unit_of(SteerConfig(**config))
    shares = {**config, "strengths": (-1.0, 0.0, 1.0)}
    assert "share of ablate" in unit_of(SteerConfig(**shares, mode="ablate"))
