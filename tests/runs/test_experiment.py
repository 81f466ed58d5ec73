"""Experiments from Python: configurations by name, validation, and the right training for each kind."""

from dataclasses import replace

import pytest

from diffprobe import load_experiment, train
from diffprobe.config.schema import RunConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import read_result
from diffprobe.generative.autoencoder import AutoencoderTraining
from diffprobe.runs.experiment import plan_training


def test_the_kind_of_an_experiment_decides_its_configuration():
    probe = load_experiment("emoji/classifier", ["data.limit=5"])
    assert isinstance(probe, RunConfig) and probe.data.limit == 5 and probe.experiment == "emoji/classifier"
    assert isinstance(load_experiment("emoji/train_autoencoder"), AutoencoderTraining)
    assert isinstance(load_experiment(settings=["probe=ridge"]), RunConfig)


def test_the_folder_is_known_before_anything_is_trained(tmp_path):
    for name in ("emoji/classifier", "emoji/train_autoencoder"):
        config = replace(load_experiment(name), output=str(tmp_path))
        assert plan_training(config).parent == tmp_path / name
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "fact"), [("emoji/demo", "demo"), ("emoji/clasifier", "emoji/classifier")])
def test_what_cannot_be_trained_is_refused_with_the_facts(name, fact):
    with pytest.raises(ConfigError, match=fact):
        load_experiment(name)


def test_a_probe_is_trained_and_its_result_returned(tiny_sd, tiny_shards, tmp_path):
    settings = [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "data.batch_size=8",
        "features.source=live", "features.taps=[mid_block]", "features.timesteps=[20]", "probe=linear",
        "probe.targets=[style]", "trainer.max_epochs=1", "trainer.enable_progress_bar=false", "logger=none",
        f"output={tmp_path}",
    ]  # fmt: skip
    path = train(load_experiment(settings=settings))
    assert path.name == "result.json" and read_result(path).kind == "classifier"
