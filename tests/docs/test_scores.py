"""The tables of docs/users/scores.md are those of the recorded results."""

import importlib.util
from types import ModuleType

import pytest

from diffprobe.config.compose import load
from diffprobe.config.parse import record_tree
from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs/users/scores.md").read_text("utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_scores", ROOT / "docs/record_scores.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(name: str) -> list[str]:
    """Return the lines of a table of the page."""
    lines = PAGE.partition(f"<!-- table: {name} -->\n")[2].splitlines()
    return lines[: next(i for i, line in enumerate(lines) if not line.startswith("|"))]


def test_the_tables_are_those_of_the_recorded_results(script: ModuleType) -> None:
    results = script.recorded()
    assert len(results) >= 2
    assert shown("scores") == script.accuracy_table(results) and shown("passes") == script.curve_table(results)


def test_each_recorded_result_has_a_command_on_the_page(script: ModuleType) -> None:
    for result in script.recorded().values():
        assert f"diffprobe score experiment={result.experiment}" in PAGE
        if result.experiment in ("emoji/retrieval_1000", "emoji/subgroups"):
            settings = load(result.experiment, [], kinds=("score",))
            assert result.config == record_tree(settings)  # the command has no further setting
            continue
        kind = result.config["candidates"]["kind"]
        for setting in (f"n_timesteps={result.config['n_timesteps']}", f"limit={result.config['limit']}"):
            default = result.experiment in ("emoji/score", "scenes/score") and kind != "retrieval"
            assert default or setting.replace("None", "null") in PAGE
        assert all(
            record.detail["interval"][0] <= record.value <= record.detail["interval"][1] for record in result.metrics
        )


def test_the_text_on_differences_is_that_of_the_results(script: ModuleType) -> None:
    records = {name: {record.name: record for record in result.metrics} for name, result in script.recorded().items()}
    regressions = ("regression_on_words", "regression_on_text_encoder")
    for name, record in records["scenes"].items():
        lows = [record.detail["differences"][control]["low"] for control in (*regressions, "chance")]
        assert (min(lows) > 0) == (not name.endswith("_place"))
    for record in (records["scenes"]["matched_caption_accuracy_place"], records["emoji10"]["caption_of_10_accuracy"]):
        found = record.detail["differences"]["regression_on_words"]
        estimate, low, high = (100 * found[key] for key in ("estimate", "low", "high"))
        assert f"{estimate:.1f} points\n({low:.1f} to {high:.1f})" in PAGE or (
            f"{estimate:.1f} points ({low:.1f} to {high:.1f})" in PAGE
        )
    for record in records["emoji100"].values():
        differences = record.detail["differences"]
        assert differences["chance"]["low"] > 0 > differences["regression_on_text_encoder"]["low"]


def test_the_text_on_generated_images_is_that_of_the_results(script: ModuleType) -> None:
    (record,) = [r for r in script.recorded()["emoji10"].metrics if r.name.startswith("generated_")]
    found = record.detail["differences"]["real_images"]
    numbers = [100 * value for value in (record.value, record.controls["real_images"], found["estimate"])]
    text = " ".join(PAGE.split())
    assert f"Of {record.n} emoji, {numbers[0]:.1f} %" in text and f"and {numbers[1]:.1f} % of the real ones" in text
    assert f"{numbers[2]:.1f} points ({100 * found['low']:.1f} to {100 * found['high']:.1f})" in text


def test_the_text_on_subgroups_is_that_of_the_result(script: ModuleType) -> None:
    (record,) = script.recorded()["subgroups"].metrics
    found, text = record.detail["differences"]["chance"], " ".join(PAGE.split())
    low, value, high = (f"{100 * found[key]:.1f}" for key in ("low", "estimate", "high"))
    assert f"for {100 * record.value:.1f} % of {record.n} images, {value} points ({low} to {high}) above chance" in text
    assert found["low"] < 0 and f"right for {100 * record.controls['most_frequent_class']:.1f} %" in text


def test_the_text_on_a_thousand_captions_is_that_of_the_result(script: ModuleType) -> None:
    first, fifth, tenth = script.recorded()["retrieval1000"].metrics
    assert first.detail["differences"]["chance"]["low"] < 0 < fifth.detail["differences"]["chance"]["low"]
    text = " ".join(PAGE.split())
    points = []
    for control in ("chance", "regression_on_words"):
        found = fifth.detail["differences"][control]
        low, value, high = (f"{100 * found[key]:.1f}" for key in ("low", "estimate", "high"))
        points.append(f"{value} points ({low} to {high}) above")
    assert f"for {100 * fifth.value:.1f} % of {fifth.n} images, {points[0]} chance, and {points[1]} the reg" in text
    assert tenth.value >= fifth.value >= first.value
