"""Costs on paper against runs that count their passes and steps."""

import dataclasses

import pytest

from diffprobe.backbones.denoiser_runner import DenoiserRunner
from diffprobe.core.errors import ConfigError
from diffprobe.runs.experiment import extract, train
from diffprobe.runs.table_cost import Cost, hours, run_cost, total

N = {"train": 16, "val": 4, "test": 4}


@pytest.fixture
def passes(monkeypatch):
    """Count the rows of all denoiser passes."""
    counted = []
    run = DenoiserRunner._pass

    def count(self, clean, noise, condition, row_of, keys, start, stop):
        counted.append(stop - start)
        return run(self, clean, noise, condition, row_of, keys, start, stop)

    monkeypatch.setattr(DenoiserRunner, "_pass", count)
    return counted


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["features.draws=2"],
        ["features.unconditional=true", "features.condition=caption"],
        ["data.limit=3"],
        ["data.limit=3", "features.views.n=2", "features.views.flip=0.5"],
    ],
)
def test_an_extraction_has_the_passes_that_were_counted(run, passes, tmp_path, settings):
    config = run("features.timesteps=[20,40]", f"features.store={tmp_path / 'stores'}", "data.batch_size=5", *settings)
    cost = run_cost(config, extracts=True)
    extract(config, quiet=True)
    assert cost.passes == sum(passes) > 0 and not cost.published
    assert run_cost(config, extracts=False).passes == 0


@pytest.mark.slow
@pytest.mark.parametrize("views", [[], ["features.views.flip=0.5"]], ids=["plain", "views"])
@pytest.mark.parametrize("probe", ["linear", "topk"])
def test_live_features_cost_passes_in_every_epoch(run, passes, probe, views):
    more = ["probe.params.k=2", "features.taps=[mid_block]"] if probe == "topk" else []
    more += views
    config = run("features.source=live", f"probe={probe}", "trainer.max_epochs=3", *more)
    cost = run_cost(config, extracts=True)
    train(config)
    assert cost.passes == sum(passes)
    assert cost.steps == 12


def test_steps_end_at_the_first_limit(run):
    steps = [
        run_cost(run("trainer.max_epochs=5", *more), extracts=False).steps for more in ([], ["trainer.max_steps=7"])
    ]
    assert steps == [20, 7]
    assert run_cost(run("probe=linear_cv"), extracts=False).steps == 0
    views = ["features.views.n=3", "features.views.use=all", "features.views.flip=0.5"]
    assert run_cost(run("trainer.max_epochs=5", *views), extracts=False).steps == 60
    assert run_cost(run("data.batch_size=100", "trainer.max_epochs=5"), extracts=False).steps == 5


def test_what_runs_no_denoiser_costs_no_passes(run):
    for control in ("raw_pixels", "vae_latents", "text_encoder"):
        assert run_cost(run(f"control={control}"), extracts=True).passes == 0
    assert run_cost(run("control=random_weights"), extracts=True).passes == 24


def test_data_that_are_not_here_count_as_published_or_not_at_all(run, tmp_path):
    config = run("data.path=data/oxford_pets")
    assert run_cost(config, extracts=True).passes == 3680 + 3669
    assert run_cost(config, extracts=True).published
    assert (
        run_cost(dataclasses.replace(config, data=dataclasses.replace(config.data, limit=100)), extracts=True).passes
        == 200
    )
    other = run_cost(run(f"data.path={tmp_path / 'nothing'}"), extracts=True)
    assert other == Cost(unknown=True)
    assert total([other, Cost(passes=3, steps=1)]) == Cost(passes=3, steps=1, unknown=True)


def test_hours_need_the_speed_of_what_there_is():
    cost = Cost(passes=3600, steps=1800)
    assert hours(cost, passes_s=1, steps_s=1) == 1.5
    assert hours(cost, passes_s=1, steps_s=None) is None and hours(Cost(), passes_s=None, steps_s=None) == 0
    for speed in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="--passes-s"):
            hours(cost, passes_s=speed, steps_s=1)
