"""What `eval latents` opens, and what it refuses before anything is measured."""

import dataclasses
import shutil

import pytest
import torch

from diffprobe.core.errors import BadTimestep, ConfigError, SchemaError, UnknownName, WeightsMismatch
from diffprobe.core.result import read_result, write_result
from diffprobe.evaluation.held_out import EncodedSplit
from diffprobe.evaluation.latent_use import evaluate_latents
from diffprobe.evaluation.latent_use_inputs import first_samples, open_latents
from diffprobe.evaluation.latent_use_settings import LatentUseEvaluation
from diffprobe.scoring.intervention_network import HeldOut


def settings(run, tmp_path, **keys):
    return LatentUseEvaluation(experiment="x", run=str(run), device="cpu", output=str(tmp_path / "out"), **keys)


@pytest.mark.slow
def test_the_autoencoder_is_opened_in_its_cell(planted_use, tmp_path) -> None:
    opened = open_latents(settings(planted_use, tmp_path))
    assert opened.cell.name == "up_blocks.2@t900:empty:none" and opened.sae.n_latents == 3
    assert opened.network.tap == "up_blocks.2" and opened.split == "test" and opened.group == "sample"
    assert open_latents(settings(planted_use, tmp_path, split="val", timestep=900)).split == "val"


@pytest.mark.slow
def test_pooled_cells_are_opened_too(small_sae, tmp_path) -> None:
    opened = open_latents(settings(small_sae, tmp_path))
    assert opened.network.splice.is_pooled and opened.cell.pool == "mean"


def test_the_first_samples_are_those_of_the_split() -> None:
    held_out = HeldOut(torch.arange(5.0).view(5, 1, 1, 1), list("abcde"), list("vwxyz"))
    split = EncodedSplit({"empty": held_out}, list("ggghh"), {"style": torch.arange(5)}, torch.arange(5))
    first = first_samples(split, 2)
    assert len(first) == 2 and first.of_condition["empty"].keys == ["a", "b"] and first.labels.tolist() == [0, 1]
    assert first.attributes["style"].tolist() == [0, 1] and len(first.of_condition["empty"].latents) == 2


@pytest.mark.parametrize(
    ("keys", "error", "match"),
    [
        ({"latents": (1, 3)}, ConfigError, "latents: latent 3 is out of range: 0 to 2"),
        ({"generate": (-1,)}, ConfigError, "generate: latent -1 is out of range: 0 to 2"),
        ({"timestep": 20}, ConfigError, r"timestep=20: the autoencoder was not trained on it(.|\n)*900"),
        ({"sae": "other"}, UnknownName, "'other'"),
        ({"split": "train"}, ConfigError, r"split=train is the training split(.|\n)*split=val"),
        ({"split": "tset"}, UnknownName, "'tset'"),
        ({"group_attribute": "famly"}, UnknownName, r"'famly'(.|\n)*family"),
    ],
)
def test_settings_that_do_not_fit_the_run_are_refused(planted_use, tmp_path, keys, error, match) -> None:
    with pytest.raises(error, match=match):
        evaluate_latents(settings(planted_use, tmp_path, **keys))
    assert not list((tmp_path / "out").rglob("result.json")) and not list((tmp_path / "out").rglob("*.safetensors"))


def copied(run, tmp_path, **config):
    """A copy of a run whose record has other settings of backbone or features."""
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    result = read_result(folder / "result.json")
    tree = {**result.config}
    for part, keys in config.items():
        tree[part] = {**tree[part], **keys}
    from diffprobe.core.digest import digest_json

    write_result(dataclasses.replace(result, config=tree, config_digest=digest_json(tree)), folder / "result.json")
    return folder


def of_cell(run, tmp_path, name):
    """A copy of a run whose autoencoder is of another cell."""
    from diffprobe.core.artifact import write_artifact
    from diffprobe.core.json_file import read_json_object

    folder = copied(run, tmp_path)
    (path,) = folder.glob("probes/**/*.json")
    tree = read_json_object(path)
    header = tree.pop("header")
    tree["settings"]["cell"] = name
    write_artifact(
        path, tree, kind=header["kind"], schema_version=header["schema_version"], inputs=header.get("inputs", {})
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("cell", "error", "match"),
    [
        ("up_blocks.2@t900:empty:max", ConfigError, "pool=max"),
        (
            "up_blocks.2.attentions.0.transformer_blocks.0.attn2/probs@t900:empty:none", ConfigError,
            "attention weights",
        ),
        ("mid_block@t900:empty:none", WeightsMismatch, "width 16; tap 'mid_block' .* 32"),
        ("up_blocks.2@t2000:empty:none", BadTimestep, "2000"),
    ],
)  # fmt: skip
def test_cells_that_cannot_be_ablated_are_refused(planted_use, tmp_path, cell, error, match) -> None:
    folder = of_cell(planted_use, tmp_path, cell)
    with pytest.raises(error, match=match):
        open_latents(settings(folder, tmp_path))


def test_backbones_without_a_denoiser_and_other_backbones_are_refused(planted_use, tiny_sd, tmp_path) -> None:
    with pytest.raises(WeightsMismatch, match="is not the backbone that the run was trained on"):
        open_latents(settings(planted_use, tmp_path, backbone_path=str(tiny_sd)))
    clean = copied(planted_use, tmp_path, backbone={"clean_input": True})
    with pytest.raises((ConfigError, WeightsMismatch), match=r"clean images|not the backbone"):
        open_latents(settings(clean, tmp_path))


def test_other_data_and_other_runs_are_refused(planted_use, direction, tiny_shards, tmp_path) -> None:
    with pytest.raises(SchemaError, match=r"is not the shard set(.|\n)*data_path"):
        open_latents(settings(planted_use, tmp_path, data_path=str(tiny_shards)))
    with pytest.raises(ConfigError, match="is a run of kind 'direction'|kind"):
        open_latents(settings(direction, tmp_path))
    with pytest.raises(ConfigError, match="is not the folder of a finished run"):
        open_latents(settings(tmp_path / "nothing", tmp_path))


def test_a_grid_is_refused_with_its_members(train_tiny, tmp_path) -> None:
    grid = train_tiny("probe=topk", "probe.params.n_latents=32", "probe.params.k=2", "probe.grid.seed=[0,1]")
    with pytest.raises(ConfigError, match=r"grid of 2 autoencoders(.|\n)*eval latents '.*members/"):
        open_latents(settings(grid, tmp_path))


def test_the_run_of_pixels_is_refused(train_tiny, tmp_path) -> None:
    run = train_tiny(
        "probe=topk", "probe.params.n_latents=32", "probe.params.k=2", "backbone.path=pixels", "features.taps=[pixels]",
        "features.timesteps=[0]", "probe.cell=pixels@t0",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="'pixels'.* no denoising error"):
        open_latents(settings(run, tmp_path))
