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

TEXT = (ROOT / "docs/users/steer.md").read_text("utf-8")


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


def test_the_comparison_has_four_factors_and_the_recorded_one_is_said_to_be_from_before_the_choice() -> None:
    found = load("scenes/steering", ["run=x"], kinds=("evaluate_steering",))
    assert isinstance(found, SteeringEvaluation) and len(found.ends) >= 4 and found.chooses
    recorded = (ROOT / "docs/results/scenes-sd/steering.json").read_text("utf-8")
    assert ("choice_seed" in recorded) != ("The recorded tables are from before this choice." in TEXT)


def test_commands_of_the_comparison_are_valid() -> None:
    commands = re.findall(r"^    diffprobe eval steering (.+)$", TEXT, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        run, *words = [word for word in shlex.split(command) if not word.startswith("experiment=")]
        load("scenes/steering", [f"run={run}", *words], kinds=("evaluate_steering",))
