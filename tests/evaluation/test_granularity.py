"""`eval granularity` with raters of plain Python and with recorded answers."""

import dataclasses
import json

import pytest

from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError, RunFailed, SchemaError
from diffprobe.core.result import read_result
from diffprobe.evaluation.granularity import (
    OPTIONS,
    QUESTION,
    GranularityEvaluation,
    evaluate_granularity,
    read_answers,
)

CELL = "mid_block@t20:empty:mean"
SEEN = []


def by_brightness(images, question):
    """Answer 1 for dark images and 4 for bright ones."""
    SEEN.append((len(images), question))
    brightness = sum(sum(image.convert("L").tobytes()) / (image.width * image.height) for image in images) / len(images)
    return 1 if brightness < 128 else 4


def out_of_range(images, question):
    """Answer with a number that is not an option."""
    return 5


def fails(images, question):
    """Raise an error."""
    raise ValueError("no model")


@pytest.fixture(scope="module")
def config(large_sae, tmp_path_factory):
    return GranularityEvaluation(
        experiment="tiny/granularity", run=str(large_sae), rater="tests.evaluation.test_granularity:by_brightness",
        reading="released", n_latents=5, n_top_images=2, device="cpu",
        output=str(tmp_path_factory.mktemp("granularity")),
    )  # fmt: skip


@pytest.fixture(scope="module")
def rated(config):
    (path,) = evaluate_granularity(config)
    return path


def test_a_rater_sees_the_top_images_of_each_latent(rated):
    (record,) = read_result(rated).metrics
    assert (record.name, record.cell, record.split, record.n) == ("granularity_released", CELL, "train", 5)
    answers = json.loads((rated.parent / "answers.json").read_text())["answers"]
    from tests.evaluation import test_granularity

    assert test_granularity.SEEN[-5:] == [(2, QUESTION)] * 5
    choices = [answer["choice"] for answer in answers]
    assert record.value == pytest.approx(sum(choices) / 5)
    assert record.detail["choices"] == {str(option): choices.count(option) for option in OPTIONS}
    low, high = record.detail["interval"]
    assert low <= record.value <= high
    assert all(len(answer["keys"]) == 2 for answer in answers)


def test_recorded_answers_give_the_same_result_without_a_rater(rated, config, tmp_path):
    answers = str(rated.parent / "answers.json")
    (path,) = evaluate_granularity(dataclasses.replace(config, rater=None, answers=answers, output=str(tmp_path)))
    assert read_result(path).metrics == read_result(rated).metrics
    fewer = tmp_path / "fewer.json"
    fewer.write_text(json.dumps({"answers": json.loads((rated.parent / "answers.json").read_text())["answers"][:3]}))
    with pytest.raises(SchemaError, match="2 of 5 latents"):
        evaluate_granularity(dataclasses.replace(config, rater=None, answers=str(fewer)))


def test_raters_that_cannot_be_used_are_named(config):
    for change, error, pattern in (
        ({"rater": None}, ConfigError, r"neither rater nor answers(.|\n)*rater\(images"),
        ({"rater": "tests.evaluation.test_granularity:out_of_range"}, RunFailed, "answered 5"),
        ({"rater": "tests.evaluation.test_granularity:fails"}, RunFailed, "ValueError: no model"),
        ({"rater": "tests.evaluation.test_granularity:nobody"}, ConfigError, "nobody"),
    ):
        with pytest.raises(error, match=pattern):
            evaluate_granularity(dataclasses.replace(config, **change))
    with pytest.raises(ConfigError, match="both set"):
        dataclasses.replace(config, answers="x.json")
    with pytest.raises(ConfigError, match="n_latents=1"):
        dataclasses.replace(config, n_latents=1)


def test_answers_in_another_form_are_refused(tmp_path):
    path = tmp_path / "answers.json"
    answer = {"run": "r", "cell": CELL, "latent": 3, "choice": 2}
    path.write_text(json.dumps({"answers": [answer]}))
    assert read_answers(path) == {("r", CELL, 3): 2}
    for answers, pattern in (
        ([{**answer, "choice": 7}], r"answers\[0\]: choice is 7"),
        ([answer, answer], "latent 3 of 'r'(.|\n)*two answers"),
        ([{**answer, "latent": "3"}], r"answers\[0\].latent"), ({}, "answers"),
    ):  # fmt: skip
        path.write_text(json.dumps({"answers": answers}))
        with pytest.raises(SchemaError, match=pattern):
            read_answers(path)


def test_the_experiment_of_the_emoji_set_is_one_of_this_kind():
    found = load("emoji/labels/granularity", ["run=runs/x", "answers=answers.json"])
    assert isinstance(found, GranularityEvaluation) and found.n_latents == 100
