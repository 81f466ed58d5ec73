"""From a trained run to what it costs the model, on the tiny pipeline and shards."""

import dataclasses
import json
import shutil

import pytest

from diffprobe.config.compose import load, load_run
from diffprobe.core.errors import (
    BadTimestep,
    ConfigError,
    SchemaError,
    UnknownName,
    WeightsMismatch,
    WeightsMissing,
)
from diffprobe.core.result import read_result
from diffprobe.experiment.evaluate_sae import SaeEvaluation, evaluate_sae, open_run
from diffprobe.experiment.extract import extract_run
from diffprobe.experiment.train import train

CELL = "mid_block@t20:caption:mean"


def train_on(timesteps, tiny_sd, tiny_shards, root):
    """Train an autoencoder of the mid block that was told the captions; return the run's folder."""
    config = load_run(
        None,
        [
            "probe=topk",
            "probe.cell=mid_block@t*",
            "probe.params.k=4",
            "probe.params.n_latents=40",
            f"backbone.path={tiny_sd}",
            "backbone.device=cpu",
            f"data.path={tiny_shards}",
            "data.batch_size=8",
            "features.taps=[mid_block]",
            f"features.timesteps={list(timesteps)}",
            "features.condition=caption",
            "features.seed=5",
            f"features.store={root / 'stores'}",
            "trainer.max_epochs=1",
            "trainer.enable_progress_bar=false",
            "logger=none",
            f"output={root / 'runs'}",
        ],
    )
    extract_run(config, progress=False)
    return train(config).parent


@pytest.fixture(scope="module")
def trained(tiny_sd, tiny_shards, tmp_path_factory):
    """Folder of a run of one cell."""
    return train_on([20], tiny_sd, tiny_shards, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def config(trained, tmp_path):
    return SaeEvaluation(
        experiment="tiny/evaluate_sae", run=str(trained), timesteps=(20, 500), device="cpu", output=str(tmp_path)
    )


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("evaluated"))
    run = SaeEvaluation(
        experiment="tiny/evaluate_sae", run=str(trained), timesteps=(20, 500), device="cpu", output=output
    )
    return read_result(evaluate_sae(run))


def test_the_result_walks_back_to_the_run(evaluated, trained):
    source = read_result(trained / "result.json")
    assert evaluated.kind == "sae_eval" and evaluated.experiment == "tiny/evaluate_sae"
    assert evaluated.config["run"] == source.run and evaluated.config["trained"] == source.config
    assert evaluated.artifacts["input/probes/sae"] == source.artifacts["probes/sae"]
    assert evaluated.artifacts["input/shards"] == source.artifacts["input/shards"]
    assert evaluated.seeds["noise"] == 5 and "output" not in evaluated.config


def test_every_timestep_is_measured_beside_mean_ablation(evaluated):
    found = {(r.name, r.cell): r for r in evaluated.metrics}
    for cell in (CELL, "mid_block@t500:caption:mean"):
        record = found["delta_mse", cell]
        assert record.n == 4 and record.split == "test" and record.probe == "topk"
        assert set(record.nulls) == {"mean_ablation", "whole_map_ablation"}
        assert record.detail["replaced"] == "the mean over places; the rest of the map stays"
        assert record.detail["trained_on"] == CELL and record.detail["target"] == "epsilon"
        assert ("recovered", cell) in found or "no_recovered" in record.detail
    assert ("delta_mse_overall", CELL) in found


def test_the_features_replaced_are_those_that_were_trained_on(evaluated, trained):
    """The fvu in the network is that of the store: same noise, same captions, same precision."""
    (store,) = (r for r in read_result(trained / "result.json").metrics if (r.name, r.split) == ("fvu", "test"))
    (here,) = (r for r in evaluated.metrics if (r.name, r.cell) == ("fvu", CELL))
    assert here.value == pytest.approx(store.value, rel=1e-4)


def test_by_default_it_is_the_timestep_of_training(config):
    found = read_result(evaluate_sae(dataclasses.replace(config, timesteps=(), group_attribute="colour", split="val")))
    assert {r.cell for r in found.metrics} == {CELL} and {r.split for r in found.metrics} == {"val"}
    (record,) = (r for r in found.metrics if r.name == "delta_mse")
    assert record.detail["n_clusters"] == 3


def test_one_autoencoder_of_several_timesteps_is_measured_at_each(tiny_sd, tiny_shards, tmp_path):
    run = train_on([20, 500], tiny_sd, tiny_shards, tmp_path)
    config = SaeEvaluation(experiment="tiny/evaluate_sae", run=str(run), device="cpu", output=str(tmp_path))
    found = [(r.name, r.cell, r.detail["trained_on"]) for r in read_result(evaluate_sae(config)).metrics]
    other = CELL.replace("t20", "t500")
    assert {cell for name, cell, _ in found if name == "delta_mse"} == {CELL, other}
    assert [cell for name, cell, _ in found if name == "delta_mse_overall"] == [None]
    assert {trained_on for _, _, trained_on in found} == {f"{CELL}, {other}"}


def test_folders_that_are_no_sae_run_are_told(config, trained, tmp_path):
    for run in ("", str(tmp_path / "nothing")):
        with pytest.raises(ConfigError, match="is not the folder of a finished run"):
            open_run(dataclasses.replace(config, run=run))
    other = tmp_path / "other"
    other.mkdir()
    result = json.loads((trained / "result.json").read_text())
    (other / "result.json").write_text(json.dumps({**result, "kind": "classifier"}))
    with pytest.raises(ConfigError, match="of kind 'classifier'; only those of kind 'sae'"):
        open_run(dataclasses.replace(config, run=str(other)))
    (other / "result.json").write_text(json.dumps(result))
    with pytest.raises(WeightsMissing, match="has no weights 'probes/sae/probe.safetensors'"):
        evaluate_sae(dataclasses.replace(config, run=str(other)))
    shutil.copytree(trained / "probes", other / "probes")
    (other / "probes" / "sae" / "probe.safetensors").write_bytes(b"other")
    with pytest.raises(SchemaError, match="is not the file that the run's result.json is about"):
        evaluate_sae(dataclasses.replace(config, run=str(other)))
    assert not list(tmp_path.glob("tiny/**/result.json"))


def test_data_and_backbones_that_do_not_fit_are_told(config, tiny_shards, tmp_path):
    from diffprobe.backbones.families import sd_unet
    from diffprobe.shards.index import build_index

    def evaluate(**changed):
        evaluate_sae(dataclasses.replace(config, **changed))

    with pytest.raises(UnknownName, match="unknown group_attribute 'color'"):
        evaluate(group_attribute="color")
    with pytest.raises(BadTimestep, match="t=1000"):
        evaluate(timesteps=(1000,))
    shutil.copytree(tiny_shards, tmp_path / "fewer")
    (tmp_path / "fewer" / "train-0000.tar").unlink()
    (tmp_path / "fewer" / "index.json").unlink()
    build_index(tmp_path / "fewer", name="tiny", licence="CC0-1.0")
    with pytest.raises(SchemaError, match="not the shard set that the run was trained on"):
        evaluate(data=str(tmp_path / "fewer"))
    with pytest.raises(WeightsMismatch, match="takes features of width 32; tap 'mid_block' of '.*' gives 16"):
        evaluate(backbone=str(sd_unet.tiny(tmp_path / "narrow", channels=(16, 16))))


def test_the_experiment_of_the_emoji_set_is_one_of_this_kind():
    found = load("emoji/evaluate_sae", ["run=runs/x"])
    assert isinstance(found, SaeEvaluation) and found.run == "runs/x" and found.group_attribute == "base"
