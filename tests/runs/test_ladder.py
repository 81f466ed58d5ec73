"""`control=ladder` as a list of runs: which rungs there are, in which order."""

import pytest

from diffprobe.config.compose import compose
from diffprobe.config.controls import LADDER
from diffprobe.core.errors import ConfigError
from diffprobe.runs.experiment import each_rung_setting, load_experiment, load_experiments
from diffprobe.runs.ladder import each_rung
from diffprobe.runs.plan import plan


@pytest.fixture
def settings(tiny_sd, tiny_shards, tmp_path):
    return [
        f"backbone.path={tiny_sd}", "backbone.device=cpu", f"data.path={tiny_shards}", "features.taps=[mid_block]",
        "features.timesteps=[20]", f"output={tmp_path}", "probe=linear", "control=ladder",
    ]  # fmt: skip


def test_each_rung_is_the_run_that_its_control_is_alone(settings):
    for rung in load_experiments(None, settings):
        alone = load_experiment(None, [*settings[:-1], f"control={rung.control}"])
        assert rung == alone and plan(rung).run_dir == plan(alone).run_dir


def test_each_rung_has_all_seeds(settings):
    runs = load_experiments(None, [*settings, "seed=[0,3]"])
    assert [(run.control, run.seed) for run in runs] == [(name, seed) for name in (*LADDER, "none") for seed in (0, 3)]


def test_without_a_ladder_nothing_changes(settings):
    composed = compose(None, settings[:-1])
    assert each_rung(composed) == [composed]
    assert each_rung_setting(settings[:-1]) == [settings[:-1]]


def test_a_submission_has_the_settings_of_each_rung(settings):
    found = each_rung_setting([*settings, "data.limit=8"])
    assert found == [[*settings[:-1], "data.limit=8", f"control={name}"] for name in (*LADDER, "none")]


def test_several_processes_are_refused_but_for_jobs_of_their_own(settings):
    assert len(each_rung_setting([*settings, "trainer.devices=2"])) == 5
    with pytest.raises(ConfigError, match=r"control=ladder with several processes(.|\n)*control=raw_pixels, vae"):
        load_experiments(None, [*settings, "trainer.devices=2"])


def test_one_configuration_is_not_a_ladder(settings):
    with pytest.raises(ConfigError, match=r"control=ladder is 5 runs(.|\n)*load_experiments"):
        load_experiment(None, settings)
