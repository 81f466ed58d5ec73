"""Evaluation of trained runs and grids on the tiny pipeline and shards."""

import dataclasses
import shutil

import pytest

from diffprobe.config.compose import load, load_run
from diffprobe.core.errors import BadTimestep, ConfigError, SchemaError, UnknownName, WeightsMismatch
from diffprobe.core.result import read_result
from diffprobe.evaluation.load_sae_run import open_runs
from diffprobe.evaluation.sae import SaeEvaluation, _with_current_paths, evaluate_sae
from diffprobe.runs.extract import extract_run
from diffprobe.runs.train import train
from diffprobe.scoring.intervention_error import SplicedError

CELL = "mid_block@t20:caption:mean"


def train_on(timesteps, tiny_sd, tiny_shards, root, *settings):
    """Train an autoencoder of the mid block with captions as condition, or a grid; return the folder of the run."""
    config = load_run(
        None,
        [
            "probe=topk",
            *([] if settings else ["probe.cell=mid_block@t*"]),
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
            *settings,
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
    (path,) = evaluate_sae(run)
    return read_result(path)


@pytest.mark.slow
def test_the_result_walks_back_to_the_run(evaluated, trained):
    source = read_result(trained / "result.json")
    assert evaluated.kind == "sae_eval" and evaluated.experiment == "tiny/evaluate_sae"
    assert evaluated.config["run"] == source.run and evaluated.config["trained"] == source.config
    assert evaluated.artifacts["input/probes/sae"] == source.artifacts["probes/sae"]
    assert evaluated.artifacts["input/shards"] == source.artifacts["input/shards"]
    assert evaluated.artifacts["input/backbone"] == source.artifacts["input/backbone"]
    assert evaluated.seeds["noise"] == 5 and "output" not in evaluated.config


@pytest.mark.slow
def test_every_timestep_is_measured_beside_mean_ablation(evaluated):
    found = {(r.name, r.cell): r for r in evaluated.metrics}
    for cell in (CELL, "mid_block@t500:caption:mean"):
        record = found["delta_mse", cell]
        assert record.n == 4 and record.split == "test" and record.probe == "topk"
        assert set(record.controls) == {"mean_ablation", "whole_map_ablation"}
        assert record.detail["replaced"] == "the mean over places; the rest of the map stays"
        assert record.detail["mean_of"] == "16 training samples"
        assert record.detail["trained_on"] == CELL and record.detail["target"] == "epsilon"
        assert ("recovered", cell) in found or "no_recovered" in record.detail
    assert ("delta_mse_overall", CELL) in found


@pytest.mark.slow
def test_the_features_replaced_are_those_that_were_trained_on(evaluated, trained):
    """The fvu in the network is that of the store: same noise, same captions, same precision."""
    (store,) = (r for r in read_result(trained / "result.json").metrics if (r.name, r.split) == ("fvu", "test"))
    (here,) = (r for r in evaluated.metrics if (r.name, r.cell) == ("fvu", CELL))
    assert here.value == pytest.approx(store.value, rel=1e-4)


def test_by_default_it_is_the_timestep_of_training(config):
    (path,) = evaluate_sae(dataclasses.replace(config, timesteps=(), group_attribute="colour", split="val"))
    found = read_result(path)
    assert {r.cell for r in found.metrics} == {CELL} and {r.split for r in found.metrics} == {"val"}
    (record,) = (r for r in found.metrics if r.name == "delta_mse")
    assert record.detail["n_clusters"] == 3


@pytest.mark.slow
def test_one_autoencoder_of_several_timesteps_is_measured_at_each(tiny_sd, tiny_shards, tmp_path):
    run = train_on([20, 500], tiny_sd, tiny_shards, tmp_path)
    config = SaeEvaluation(experiment="tiny/evaluate_sae", run=str(run), device="cpu", output=str(tmp_path))
    (path,) = evaluate_sae(config)
    found = [(r.name, r.cell, r.detail["trained_on"]) for r in read_result(path).metrics]
    other = CELL.replace("t20", "t500")
    assert {cell for name, cell, _ in found if name == "delta_mse"} == {CELL, other}
    assert [cell for name, cell, _ in found if name == "delta_mse_overall"] == [None]
    assert {trained_on for _, _, trained_on in found} == {f"{CELL}, {other}"}


@pytest.fixture(scope="module")
def grid(tiny_sd, tiny_shards, tmp_path_factory):
    """Folder of a grid whose cells alternate, so that its order is not that of the networks."""
    cells = "features.taps=[mid_block,up_blocks.0]", "probe.grid.cell=[up_blocks.0@t20,mid_block@t20]"
    root = tmp_path_factory.mktemp("grid")
    return train_on([20], tiny_sd, tiny_shards, root, "probe.grid.seed=[0,3]", *cells)


@pytest.mark.slow
def test_a_grid_is_measured_member_by_member_and_each_has_the_record_of_its_own(grid, tmp_path, monkeypatch):
    opened = []
    make = SplicedError.__init__
    monkeypatch.setattr(SplicedError, "__init__", lambda self, *a, **k: opened.append(a[1]) or make(self, *a, **k))
    config = SaeEvaluation(experiment="tiny/evaluate_sae", run=str(grid), device="cpu", output=str(tmp_path / "grid"))
    paths = evaluate_sae(config)
    assert opened == ["mid_block", "up_blocks.0"]
    found = {read_result(path).config["run"]: read_result(path) for path in paths}
    members = [f"{cell}@t20,seed={seed}" for cell in ("mid_block", "up_blocks.0") for seed in (0, 3)]
    assert list(found) == [f"{grid.name}/{member}" for member in members] and len(set(paths)) == 4
    for member, result in zip(members, found.values(), strict=True):
        assert {r.cell for r in result.metrics} == {f"{member.partition(',')[0]}:caption:mean"}
        assert {r.name for r in result.metrics} >= {"delta_mse", "delta_mse_overall", "fvu"}
        source = read_result(grid / "members" / member / "result.json")
        assert result.seeds["run"] == source.seeds["run"]
        assert result.artifacts["input/probes/sae"] == source.artifacts["probes/sae"]
    alone = dataclasses.replace(config, run=str(grid / "members" / members[3]), output=str(tmp_path / "alone"))
    (path,) = evaluate_sae(alone)
    assert path.parent.name == paths[3].parent.name
    assert read_result(path).metrics == read_result(paths[3]).metrics


@pytest.mark.slow
def test_features_that_are_means_over_draws_are_refused(tiny_sd, tiny_shards, tmp_path):
    def evaluate(*settings):
        run = train_on([20], tiny_sd, tiny_shards, tmp_path, "features.draws=2", *settings)
        config = SaeEvaluation(
            experiment="tiny/evaluate_sae", run=str(run), device="cpu", output=str(tmp_path / "found")
        )
        (path,) = evaluate_sae(config)
        return read_result(run / "result.json"), read_result(path)

    with pytest.raises(ConfigError, match=r"draws=2(.|\n)*features.keep_draws=true"):
        evaluate()
    assert not (tmp_path / "found").exists()
    trained, found = evaluate("features.keep_draws=true")
    (store,) = (r for r in trained.metrics if (r.name, r.split) == ("fvu", "test"))
    (here,) = (r for r in found.metrics if r.name == "fvu")
    assert here.value == pytest.approx(store.value, rel=1e-4) and here.detail["draws"] == 2


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_measured(config, monkeypatch):
    encoded = []
    monkeypatch.setattr(SplicedError, "encode_images", lambda *args: encoded.append(args))
    with pytest.raises(OSError, match="/proc/x"):
        evaluate_sae(dataclasses.replace(config, output="/proc/x"))
    assert not encoded


def test_the_runs_own_limit_holds_where_no_other_is_given(config, trained):
    (run,) = open_runs(str(trained))
    limited = dataclasses.replace(run.config, data=dataclasses.replace(run.config.data, limit=3))
    run = dataclasses.replace(run, config=limited)
    for limit, expected in ((None, 3), (2, 2), (5, 5)):
        assert _with_current_paths(dataclasses.replace(config, limit=limit), run).config.data.limit == expected


def test_values_out_of_range_are_refused(config):
    with pytest.raises(ConfigError, match="limit=0"):
        dataclasses.replace(config, limit=0)
    with pytest.raises(ConfigError, match="device=gpu"):
        dataclasses.replace(config, device="gpu")


def test_data_and_backbones_that_do_not_fit_are_told(config, tiny_shards, tmp_path):
    from diffprobe.backbones.families import sd_unet
    from diffprobe.shards.index import build_index

    def evaluate(**changed):
        evaluate_sae(dataclasses.replace(config, **changed))

    with pytest.raises(UnknownName, match="'color'"):
        evaluate(group_attribute="color")
    with pytest.raises(BadTimestep, match="t=1000"):
        evaluate(timesteps=(1000,))
    shutil.copytree(tiny_shards, tmp_path / "fewer")
    (tmp_path / "fewer" / "train-0000.tar").unlink()
    (tmp_path / "fewer" / "index.json").unlink()
    build_index(tmp_path / "fewer", name="tiny", licence="CC0-1.0")
    with pytest.raises(SchemaError, match=r"shard set(.|\n)*data_path=FOLDER"):
        evaluate(data_path=str(tmp_path / "fewer"))
    with pytest.raises(WeightsMismatch, match=r"backbone(.|\n)*backbone_path=FOLDER"):
        evaluate(backbone_path=str(sd_unet.tiny(tmp_path / "other", seed=1)))
    with pytest.raises(WeightsMismatch, match="width 32; tap 'mid_block' .* 16"):
        evaluate(backbone_path=str(sd_unet.tiny(tmp_path / "narrow", channels=(16, 16))))


def test_the_experiment_of_the_emoji_set_is_one_of_this_kind():
    found = load("emoji/evaluate_sae", ["run=runs/x"])
    assert isinstance(found, SaeEvaluation) and found.run == "runs/x" and found.group_attribute is None
