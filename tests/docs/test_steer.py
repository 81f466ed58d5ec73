"""The page about steering: its commands and its table of settings are those of the code."""

import csv
import dataclasses
import re
import shlex

from diffprobe.cli.arguments import settings_tree
from diffprobe.config.compose import load
from diffprobe.config.parse import parse
from diffprobe.evaluation.steer import SteerConfig
from diffprobe.evaluation.steering_settings import SteeringEvaluation
from tests.docs.markdown import ROOT
from tests.docs.test_numbers import script

TEXT = (ROOT / "docs/users/steer.md").read_text("utf-8")
record_steering = script("record_steering")


def test_the_settings_of_its_commands_are_valid() -> None:
    commands = re.findall(r"^    diffprobe steer (.+)$", TEXT, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        _, *words = shlex.split(command)
        parse(SteerConfig, settings_tree(words))


def test_every_setting_is_there_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", TEXT.partition("| setting |")[2], re.MULTILINE))
    assert list(rows) == [field.name for field in dataclasses.fields(SteerConfig)]
    for field in dataclasses.fields(SteerConfig):
        if isinstance(field.default, int | float):
            assert float(rows[field.name]) == field.default, field.name


def test_the_numbers_of_its_text_are_those_of_the_recorded_comparison() -> None:
    with (ROOT / "docs/results/scenes-sd/steering.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["strength"]]
    value = {
        (row["factor"], row["method"], float(row["strength"]), row["measure"]): float(row["value"]) for row in rows
    }
    text = " ".join(TEXT.split())
    named = {"mean difference": 4, "best latent": 8, "random latents": 8, "text embedding": 2, "detect and replace": 1}
    for method, strength in named.items():
        success, collateral = (value["texture", method, strength, name] for name in ("success", "collateral"))
        found = re.search(rf"{success:.2f}( of images striped| striped|) at strength {strength}\D", text)
        assert found and f"{collateral:.2f})" in text[found.start() : found.start() + 160], method
    distances = [one for (*_, name), one in value.items() if name == "distance"]
    assert f"within {min(distances):.2f} and {max(distances):.2f}" in text
    assert value["colour", "prompt edit", 1, "success"] == 1


def test_the_table_is_made_from_the_recorded_results_of_all_factors_of_the_experiment() -> None:
    found = load("scenes/steering", ["run=x"], kinds=("evaluate_steering",))
    assert isinstance(found, SteeringEvaluation) and found.chooses
    results = record_steering.recorded("scenes-sd").values()
    assert {factor for result in results for factor in result.config["ends"]} == set(found.ends)
    assert all(result.seeds["choice"] != result.seeds["noise"] for result in results)
    assert record_steering.with_tables(TEXT) == TEXT


def test_the_statements_about_the_table_are_those_of_the_results() -> None:
    text, value, differences, distance, points = " ".join(TEXT.split()), {}, {}, {}, {}
    for result in record_steering.recorded("scenes-sd").values():
        for one in result.metrics:
            at = (str(one.target), str(one.probe))
            if one.name == "matched_success":
                value[at] = one.value
                if "minus_prompt_edit" in one.detail:
                    differences[at] = (one.detail["minus_prompt_edit"], one.detail["minus_prompt_edit_interval"][1])
            elif one.name == "distance":
                distance[*at, float(one.detail["strength"])] = one.value
            elif one.name == "success":
                points[*at, float(one.detail["strength"])] = one.value
    reaching = {at for at, (_, high) in differences.items() if high >= 0}
    assert reaching == {("texture", "best neuron"), ("texture", "text embedding")}
    assert f"a neuron for stripes ({differences['texture', 'best neuron'][0]:+.2f})" in text
    moved = {factor: value[factor, "text embedding"] for factor in ("size", "place", "colour")}
    stated = {factor: value[factor, "prompt edit"] for factor in ("size", "place")}
    assert f"size and place ({moved['size']:.2f} and {moved['place']:.2f}, where the prompt has" in text
    assert f"where the prompt has {stated['size']:.2f} and {stated['place']:.2f})" in text
    assert f"but not for colour ({moved['colour']:.2f})" in text
    gains = [
        value[factor, "best latent"] - value[factor, "random latents"]
        for factor in ("size", "place", "texture", "colour")
    ]
    assert f"at most {max(gains):.2f} ahead of random latents" in text
    latent = [one for (factor, method, _), one in points.items() if (factor, method) == ("size", "best latent")]
    assert f"leave {min(latent):.2f} to {max(latent):.2f} of the figures large" in text
    named = {("size", "mean difference", 4.0), ("size", "best neuron", 4.0), ("size", "detect and replace", 1.0)}
    assert f"at most {max(one for at, one in distance.items() if at not in named):.2f} but for" in text
    assert all(f"{distance[at]:.2f}" in text for at in named)


def test_the_statements_about_the_flow_model_are_those_of_its_results() -> None:
    text, value, high, untouched = " ".join(TEXT.split()), {}, {}, {}
    for result in record_steering.recorded("scenes-flow").values():
        for one in result.metrics:
            if one.name == "matched_success":
                at = (str(one.target), str(one.probe))
                value[at] = one.value
                high[at] = one.detail.get("minus_prompt_edit_interval", (0.0, 0.0))[1]
            elif one.name == "success" and one.detail["strength"] == 0:
                untouched[str(one.target)] = one.value
    inside = ("best latent", "random latents", "mean difference", "best neuron", "detect and replace")
    for factor in ("size", "place"):
        assert max(inside, key=lambda name, f=factor: value[f, name]) == "mean difference"
        assert high[factor, "mean difference"] < 0

    def pair(name: str) -> str:
        return f"{value['size', name]:.2f} and {value['place', name]:.2f}"

    start = f"({pair('mean difference')}, where {untouched['size']:.2f} and {untouched['place']:.2f} are untouched)"
    assert start in text and f"({pair('prompt edit')})" in text and f"({pair('text embedding')})" in text
    assert value["size", "best latent"] <= value["size", "random latents"]
    assert f"({value['colour', 'prompt edit']:.2f} red, {untouched['colour']:.2f} untouched)" in text
    assert all(high["colour", name] >= 0 for name in inside)


def test_commands_of_the_comparison_are_valid() -> None:
    commands = re.findall(r"^    diffprobe eval steering (.+)$", TEXT, re.MULTILINE)
    assert len(commands) == 6
    for command in commands:
        run, *words = [word for word in shlex.split(command) if not word.startswith("experiment=")]
        load("scenes/steering", [f"run={run}", *words], kinds=("evaluate_steering",))
