import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from diffprobe.core.errors import EmptyClass, UninformativeReader, WeightsMissing
from diffprobe.demo.console import DemoConsole
from diffprobe.demo.scenes.measures import find_record
from diffprobe.demo.scenes.run import load_scenes, run_scenes


def view() -> DemoConsole:
    return DemoConsole(Console(file=io.StringIO(), width=110))


@pytest.mark.slow
def test_each_twin_follows_its_own_rates_from_the_same_prompts_and_noise(demo, drawn):
    outcome = run_scenes(demo, view())
    for one, sibling in zip(outcome.twins, ("permuted", "planted"), strict=True):
        own = find_record(one.result, "spearman", one.twin.world)
        assert own.value > 0.8 > 0.4 > find_record(one.result, "spearman", sibling).value
        assert own.detail["interval"][0] < own.value < own.detail["interval"][1]
        assert set(one.samples) == set(demo.prompts) and one.path.is_file()
        assert all(found.images.shape == (3, 64, 64, 3) for found in one.samples.values())
        assert one.samples["a poet, striped clothes"].striped.mean() > 0.5  # what the prompt states
    calls = {world: [call[1:] for call in drawn if call[0] == world] for world in ("planted", "permuted")}
    assert calls["planted"] == calls["permuted"] and len(calls["planted"]) == 24 + 2
    assert [prompts for prompts, _ in calls["planted"][-2:]] == [[prompt] * 3 for prompt in demo.prompts]


@pytest.mark.slow
def test_a_second_call_samples_nothing_and_finds_the_same(demo, drawn):
    demo = replace(demo, n_per_role=4)
    first = run_scenes(demo, view())
    n_calls = len(drawn)
    files = {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.safetensors")}
    again = run_scenes(demo, view())
    assert len(drawn) == n_calls and len(files) == 2 * (24 + 2)
    assert {path: path.stat().st_mtime_ns for path in first.folder.rglob("*.safetensors")} == files
    for one, other in zip(first.twins, again.twins, strict=True):
        assert one.result.metrics == other.result.metrics and one.path == other.path
        for prompt, found in one.samples.items():
            assert np.array_equal(found.images, other.samples[prompt].images)


@pytest.mark.slow
def test_an_interrupted_call_continues(demo, drawn):
    demo = replace(demo, n_per_role=4)
    complete = run_scenes(demo, view())
    kept = sorted(complete.folder.rglob("*.safetensors"))
    for path in kept[::3]:
        path.unlink()
    drawn.clear()
    again = run_scenes(demo, view())
    assert len(drawn) == len(kept[::3])
    assert [one.result.metrics for one in again.twins] == [one.result.metrics for one in complete.twins]


def test_nothing_is_sampled_before_everything_is_checked(demo, drawn, tmp_path):
    with pytest.raises(WeightsMissing):
        run_scenes(replace(demo, reader=str(tmp_path / "absent")), view())
    assert not drawn and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_model_that_draws_no_scenes_is_sampled_and_then_refused(small):
    """The real path of a tiny pipeline with random weights, whose images have no textures to be corrected."""
    with pytest.raises((EmptyClass, UninformativeReader)):
        run_scenes(small, view())


def test_the_shipped_file_is_of_the_twins():
    config = load_scenes("scenes/demo", ["seed=3"])
    assert [twin.model for twin in config.twins] == ["scenes-sd", "scenes-sd-permuted"] and config.seed == 3
    assert config.experiment == "scenes/demo" and config.reader == "scenes-reader"
