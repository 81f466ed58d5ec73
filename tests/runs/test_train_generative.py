"""Both stages of a tiny diffusion model through the run's folder: equal seeds, an interruption, what is written."""

import dataclasses
import json
import os
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file

from diffprobe.config.schema import LoggerConfig
from diffprobe.core.digest import digest_file
from diffprobe.core.errors import ConfigError, NonFinite, WeightsMissing
from diffprobe.core.result import read_result
from diffprobe.core.signals import Terminated
from diffprobe.generative.autoencoder import AutoencoderModule
from diffprobe.generative.denoiser import DenoiserModule
from diffprobe.generative.ema import EMACallback
from diffprobe.generative.text_encoder import TextEncoderModule
from diffprobe.runs.train_generative import inputs_of, run_dir_of, train_generative
from tests.pretend_slurm import pretend_job
from tests.toy_generative import toy_trainings

pytestmark = pytest.mark.slow

MODULES = {"autoencoder": AutoencoderModule, "text_encoder": TextEncoderModule, "denoiser": DenoiserModule}


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def configs(tiny_shards, tiny_teacher, tmp_path_factory):
    """The three runs; two epochs of two steps."""
    return toy_trainings(tiny_shards, tiny_teacher, tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory):
    """Result paths of the uninterrupted runs."""
    output = str(tmp_path_factory.mktemp("whole"))
    return {name: train_generative(dataclasses.replace(config, output=output)) for name, config in configs.items()}


def weights(result) -> dict[str, torch.Tensor]:
    folder = result.parent / "weights"
    return {
        f"{path.relative_to(folder)}:{name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def assert_same(left, right) -> None:
    one, two = weights(left), weights(right)
    assert one.keys() == two.keys() and one
    assert not [name for name in one if not one[name].equal(two[name])]
    assert read_result(left).metrics == read_result(right).metrics


def watch(patch, module_class, place: str, steps: list[int], stop_at: int | None = None) -> None:
    """Note the step at each call of a method, and fail there at one of them."""
    original = getattr(module_class, place)

    def watched(module, *args):
        steps.append(module.global_step)
        if module.global_step == stop_at:
            raise Interrupted
        return original(module, *args)

    patch.setattr(module_class, place, watched)


@pytest.mark.parametrize("name", MODULES)
def test_one_seed_gives_one_model(name, configs, whole, tmp_path):
    again = train_generative(dataclasses.replace(configs[name], output=str(tmp_path)))
    assert_same(again, whole[name])


@pytest.mark.parametrize("place", ["training_step", "save"])
@pytest.mark.parametrize("name", MODULES)
def test_a_resumed_run_equals_an_uninterrupted_one(name, place, configs, whole, tmp_path, monkeypatch):
    """In the middle of the second epoch, and after the last one, when only the export was to come."""
    config = dataclasses.replace(configs[name], output=str(tmp_path))
    steps: list[int] = []
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        watch(patch, MODULES[name], place, steps, stop_at=4 if place == "save" else 3)
        train_generative(config)
    assert steps == ([4] if place == "save" else [0, 1, 2, 3])
    assert not (run_dir_of(config) / "result.json").exists()

    steps.clear()
    with monkeypatch.context() as patch:
        watch(patch, MODULES[name], "training_step", steps)
        result = train_generative(config)
    assert steps == ([] if place == "save" else [2, 3])  # steps in the checkpoint are not repeated
    assert_same(result, whole[name])


def signal_in_the_first_step(patch, module_class) -> None:
    original = module_class.training_step

    def signalled(module, *args):
        if module.global_step == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(module, *args)

    patch.setattr(module_class, "training_step", signalled)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["autoencoder", "denoiser"])
def test_a_requeued_run_ends_and_equals_an_undisturbed_one_after_its_restart(
    name, configs, whole, tmp_path, monkeypatch
):
    """The signal of SLURM arrives within the first of two steps of an epoch, before the averaged weights are known."""
    requeued = pretend_job(tmp_path, monkeypatch.setenv, monkeypatch.delenv)
    config = dataclasses.replace(configs[name], output=str(tmp_path / "runs"))
    steps: list[int] = []
    with monkeypatch.context() as patch:
        watch(patch, MODULES[name], "training_step", steps)
        signal_in_the_first_step(patch, MODULES[name])
        with pytest.raises(Terminated):
            train_generative(config)
    assert steps == [0] and requeued.read_text() == "requeue 17\n"
    (run_dir_of(config) / ".last.ckpt.0123abcd.tmp").touch()  # what a kill has left
    with monkeypatch.context() as patch:
        watch(patch, MODULES[name], "training_step", steps)
        result = train_generative(config)
    assert steps == [0, 1, 2, 3]
    assert_same(result, whole[name])
    written = {path.name for path in result.parent.iterdir()}
    assert written == {"inputs.json", "last.ckpt", "restarts.json", "result.json", "weights"}


@pytest.mark.parametrize("name", MODULES)
def test_the_result_records_what_was_trained(name, configs, whole):
    found, folder = read_result(whole[name]), whole[name].parent
    assert found.kind == "train_backbone" and found.experiment == f"tiny/{name}" and found.seeds == {"seed": 0}
    assert [(record.name, record.split, record.n) for record in found.metrics] == [
        ({"autoencoder": "psnr_db", "text_encoder": "distance", "denoiser": "mse"}[name], "val", 4)
    ]
    inputs = {path: digest for path, digest in found.artifacts.items() if path.startswith("input/")}
    others = {"autoencoder": [], "text_encoder": ["input/teacher"], "denoiser": ["input/autoencoder"]}[name]
    assert set(inputs) == {"input/shards", *others} and all(inputs.values())
    written = {path: digest for path, digest in found.artifacts.items() if path not in inputs}
    assert written and all(digest_file(folder / "weights" / path) == digest for path, digest in written.items())
    parts = {"autoencoder": {""}, "text_encoder": {"text_encoder"}, "denoiser": {"unet", "vae", "text_encoder"}}[name]
    assert {path.rpartition("/")[0] for path in written} == parts
    assert {(folder / "weights" / path).stat().st_mode for path in written} == {whole[name].stat().st_mode}
    assert (folder / "last.ckpt").is_file()


def test_the_averaged_weights_are_the_saved_ones(whole):
    saved = torch.load(whole["autoencoder"].parent / "last.ckpt", weights_only=True)
    exported = {name.partition(":")[2]: value for name, value in weights(whole["autoencoder"]).items()}
    averaged = {name.removeprefix("vae."): value for name, value in saved["state_dict"].items()}
    assert all(exported[name].equal(averaged[name]) for name in exported)
    current = {name.removeprefix("vae."): value for name, value in saved["current_model_state"].items()}
    assert not all(exported[name].equal(current[name]) for name in exported)


def test_averaging_leaves_positions_in_a_text_alone(configs):
    """0.9 x 3 + 0.1 x 3 is less than 3 in float32, and a whole number would be cut to 2."""
    import lightning

    module = DenoiserModule(configs["denoiser"])
    averaging = EMACallback(0.9)
    trainer = lightning.Trainer(accelerator="cpu", logger=False, barebones=False, enable_checkpointing=False)
    averaging.setup(trainer, module, "fit")
    for _ in range(3):
        averaging._average_model.update_parameters(module)
    averaging.on_train_end(trainer, module)
    assert module.text_encoder.embeddings.position_ids.flatten().tolist() == list(range(16))


def test_a_run_has_a_folder_of_its_settings(configs, tmp_path):
    config = configs["autoencoder"]
    elsewhere = run_dir_of(dataclasses.replace(config, output=str(tmp_path)))
    assert elsewhere.parent == tmp_path / "tiny" / "autoencoder" and elsewhere.name == run_dir_of(config).name
    assert run_dir_of(dataclasses.replace(config, seed=1)).name != elsewhere.name


def test_another_seed_gives_another_model_and_curves_are_kept(configs, whole, tmp_path):
    logger = LoggerConfig(kind="csv")
    config = dataclasses.replace(configs["autoencoder"], output=str(tmp_path), seed=1, logger=logger)
    result = train_generative(config)
    one, two = weights(result), weights(whole["autoencoder"])
    assert not all(one[name].equal(two[name]) for name in one)
    (curves,) = result.parent.rglob("metrics.csv")
    assert {"train/mse", "train/kl", "val/psnr_db"} <= set(curves.read_text().splitlines()[0].split(","))
    assert json.loads(result.read_text())["config"]["seed"] == 1


def test_a_run_that_is_refused_loses_nothing(configs, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "of-line")
    online = {"logger": LoggerConfig(kind="wandb"), "output": str(tmp_path)}
    for config, error in (
        (dataclasses.replace(configs["autoencoder"], **online), ConfigError),
        (dataclasses.replace(configs["denoiser"], **online, autoencoder=str(tmp_path / "gone")), WeightsMissing),
    ):
        folder = run_dir_of(config)
        folder.mkdir(parents=True)
        files = [folder / name for name in ("result.json", "last.ckpt")]
        for file in files:
            file.write_text("of the run before")
        with pytest.raises(error):
            train_generative(config)
        assert all(file.is_file() for file in files)


def test_other_files_under_an_interrupted_run_are_noticed(configs, tmp_path, monkeypatch):
    folder = tmp_path / "vae"
    shutil.copytree(configs["denoiser"].autoencoder, folder)
    config = dataclasses.replace(configs["denoiser"], autoencoder=str(folder), output=str(tmp_path / "runs"))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        watch(patch, DenoiserModule, "training_step", [], stop_at=2)
        train_generative(config)
    AutoencoderModule(dataclasses.replace(configs["autoencoder"], seed=7)).vae.save_pretrained(folder)
    with pytest.raises(ConfigError, match="changed since: autoencoder"):
        train_generative(config)
    assert (run_dir_of(config) / "last.ckpt").is_file()


def test_the_initial_weights_of_a_denoiser_are_recorded(configs, whole):
    weights = str(whole["denoiser"].parent / "weights")
    config = configs["denoiser"]
    both, other = (
        inputs_of(dataclasses.replace(config, init_from=weights, text_encoder=text_encoder))
        for text_encoder in (None, str(whole["text_encoder"].parent / "weights"))
    )
    assert set(both) == {"input/shards", "input/autoencoder", "input/text_encoder", "input/init_from"}
    assert {name for name in both if both[name] != other[name]} == {"input/text_encoder"}


def test_the_wandb_run_is_recorded_and_closed(configs, tmp_path, monkeypatch):
    import wandb

    from diffprobe.training import loggers

    finished = []
    finish = loggers.finish
    monkeypatch.setattr(loggers, "finish", lambda *args, **more: finished.append(args[1]) or finish(*args, **more))
    logger = LoggerConfig(kind="wandb", mode="offline")
    result = train_generative(dataclasses.replace(configs["autoencoder"], logger=logger, output=str(tmp_path)))
    found = read_result(result)
    assert found.wandb_run_id == json.loads((result.parent / "wandb.json").read_text())["id"]
    assert wandb.run is None and [one.metrics for one in finished] == [found.metrics]


def test_weights_without_finite_metrics_do_not_replace_others(configs, whole, tmp_path, monkeypatch):
    config = dataclasses.replace(configs["autoencoder"], output=str(tmp_path))
    shutil.copytree(whole["autoencoder"].parent, run_dir_of(config))
    monkeypatch.setattr(
        AutoencoderModule, "validation_step", lambda module, *_: module.log("val/psnr_db", float("nan"), batch_size=1)
    )
    with pytest.raises(NonFinite, match="val/psnr_db=nan"):
        train_generative(config)
    files = {path.name: path.read_bytes() for path in (whole["autoencoder"].parent / "weights").iterdir()}
    assert files and all((run_dir_of(config) / "weights" / name).read_bytes() == old for name, old in files.items())


def test_more_than_one_process_is_refused(configs, tmp_path):
    trainer = dataclasses.replace(configs["autoencoder"].trainer, devices=2)
    with pytest.raises(ConfigError, match="one process"):
        train_generative(dataclasses.replace(configs["autoencoder"], trainer=trainer, output=str(tmp_path)))
    assert not list(tmp_path.iterdir())
