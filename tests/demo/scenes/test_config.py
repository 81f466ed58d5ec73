from dataclasses import replace

import pytest

from diffprobe.core.errors import ConfigError, UnknownName, WeightsMismatch, WeightsMissing
from diffprobe.demo.scenes.config import Twin, check_scenes
from diffprobe.generative.scene_reader import SceneReader
from diffprobe.shards.scenes.world import load_world


def test_a_valid_demo_passes_and_measures_rates_by_its_own_settings(demo):
    assert check_scenes(demo).digest == load_world().digest
    rates = demo.rates_of(demo.twins[1])
    assert (rates.model, rates.world, rates.reader) == (demo.twins[1].model, "permuted", "scenes-reader")
    assert (rates.n_per_role, rates.validated_per_role, rates.sampling_steps) == (12, 4, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"twins": ()}, "0 model"),
        ({"twins": (Twin(model="a", world="planted"), Twin(model="a", world="permuted"))}, "model=a"),
        ({"twins": (Twin(model="a", world="planted"), Twin(model="b", world="planted"))}, "world=planted"),
        (
            {"twins": (Twin(model="renderer", world="planted"), Twin(model="b", world="permuted"))},
            "eval rates renderer",
        ),
        ({"prompts": ()}, "prompts is empty"),
        ({"prompts": ("a cook", "a cook")}, "twice"),
        ({"images_per_prompt": 0}, "images_per_prompt=0"),
        ({"n_per_role": 2}, "validated_per_role=4"),
        ({"sampling_steps": 0}, "sampling_steps=0"),
        ({"guidance": -1.0}, "guidance=-1.0"),
    ],
)
def test_settings_that_cannot_be_run_are_refused(demo, change, words):
    with pytest.raises(ConfigError, match=words):
        replace(demo, **change)


@pytest.mark.parametrize(
    ("prompt", "words"), [("a cok", "number 2.*'a cok'"), ("striped clothes", "no role.*\n.*cook")]
)
def test_prompts_have_to_be_captions_with_a_role(demo, prompt, words):
    with pytest.raises(ConfigError, match=words):
        check_scenes(replace(demo, prompts=("a cook", prompt)))


def test_a_missing_world_reader_or_model_is_refused(demo, tmp_path):
    one, two = demo.twins
    with pytest.raises(UnknownName, match="permuted"):
        check_scenes(replace(demo, twins=(one, replace(two, world="permutd"))))
    with pytest.raises(WeightsMissing, match="scenes/train_reader"):
        check_scenes(replace(demo, reader=str(tmp_path)))
    with pytest.raises(WeightsMissing, match="absent"):
        check_scenes(replace(demo, twins=(one, replace(two, model=str(tmp_path / "absent")))))
    with pytest.raises(WeightsMismatch, match="pixels"):
        check_scenes(replace(demo, twins=(one, replace(two, model="pixels"))))


def test_a_model_of_another_resolution_than_the_reader_is_refused(demo, tmp_path):
    SceneReader(load_world(), resolution=32).save(tmp_path / "reader")
    with pytest.raises(WeightsMismatch, match="64 pixels, the reader reads 32"):
        check_scenes(replace(demo, reader=str(tmp_path / "reader")))
