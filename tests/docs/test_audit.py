"""The page about audits: its commands, example and names are those of the code."""

import csv
import re
import shlex
from dataclasses import fields

import yaml

from diffprobe.cli.audit import load_audit
from diffprobe.config.parse import parse
from diffprobe.evaluation.audit_inputs import FORMAT, PROMPTS_FILE, TENSORS_FILE
from diffprobe.evaluation.audit_settings import Audit
from tests.docs.markdown import ROOT

TEXT = (ROOT / "docs/users/audit.md").read_text("utf-8")


def test_the_settings_of_its_commands_are_valid() -> None:
    commands = re.findall(r"^    diffprobe audit (.+)$", TEXT, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        words = shlex.split(command)
        flags = [position for position, word in enumerate(words) if word.startswith("--")]
        words = words[: flags[0]] if flags else words
        assert len(load_audit(words).templates) >= 20


def test_its_example_is_an_audit() -> None:
    block, steering = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    tree = yaml.safe_load(block)
    assert tree.pop("kind") == "audit"
    assert parse(Audit, {**tree, "experiment": "x"}).has_few_templates
    assert parse(Audit, {**tree, "experiment": "x", **yaml.safe_load(steering)}).steering is not None


def test_keys_and_files_that_it_names_exist() -> None:
    keys = {field.name for field in fields(Audit)}
    named = set(re.findall(r"`(\w+)(?:=[A-Z]|: false|=corrected|=position)", TEXT))
    assert named and named <= keys | {"reader"}, named - keys
    assert all(name in TEXT for name in (FORMAT, PROMPTS_FILE, TENSORS_FILE))
    assert f"`least_separability` ({Audit.least_separability})" in TEXT


def test_the_table_of_steering_is_that_of_the_recorded_file() -> None:
    with (ROOT / "docs/results/scenes-sd/audit-steering.csv").open(encoding="utf-8") as file:
        rates = [row for row in csv.DictReader(file) if row["measure"] == "rate"]
    own = {row["strength"]: row for row in rates if row["steered"] == "texture"}
    others = [row for row in rates if row["steered"] != "texture"]
    assert len({row["steered"] for row in others}) == 19
    shown = [f"{float(r['value']):.2f} [{float(r['low']):.2f}, {float(r['high']):.2f}]" for r in own.values()]
    assert f"| striped, as perceived | {' | '.join(shown)} |" in TEXT
    ranges = []
    for strength in own:
        values = sorted(float(row["value"]) for row in others if row["strength"] == strength)
        ends = (f"{values[0]:.2f}", f"{values[-1]:.2f}")
        ranges.append(ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}")
    assert f"| 19 random directions | {' | '.join(ranges)} |" in TEXT


def test_the_table_of_emoji_is_that_of_the_recorded_files() -> None:
    folder = ROOT / "docs/results/emoji-sd/audit"
    with (folder / "audit.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    with (folder / "steering.csv").open(encoding="utf-8") as file:
        rates = [row for row in csv.DictReader(file) if row["measure"] == "rate"]
    for axis in ("gender", "skin tone"):
        own = [row for row in rows if row["axis"] == axis]
        found = sorted((row for row in own if row["found"] == "yes"), key=lambda row: float(row["position"]))
        above = [row["subject"] for row in reversed(found) if float(row["position"]) > 0]
        below = [row["subject"] for row in found if float(row["position"]) < 0]
        if axis == "gender":
            ends = f"woman: {len(above)} ({', '.join(above)}) | man: {len(below)} ({', '.join(below)})"
        else:
            side = sum(float(row["position"]) < 0 for row in own)
            assert not above
            ends = f"dark: none | light: {len(below)} of the {side} subjects on that side"
        read = {(row["steered"], float(row["strength"])): float(row["read"]) for row in rates if row["axis"] == axis}
        effects = {name: read[name, 4.0] - read[name, -4.0] for name in dict.fromkeys(name for name, _ in read)}
        effect = effects.pop(axis)
        assert len(effects) == 19
        p = (1 + sum(other >= effect - 1e-9 for other in effects.values())) / 20
        assert f"| {axis} | {len(found)} | {ends} | {effect:+.2f}, p {p:.2f} |" in TEXT
