"""The page about decoding: its commands and its table of settings are those of the code, its example is recorded."""

import dataclasses
import re
import shlex
from collections.abc import Sequence
from typing import Any

from diffprobe.cli.arguments import settings_tree
from diffprobe.config.compose import load_run
from diffprobe.config.parse import parse
from diffprobe.core.result import read_result
from diffprobe.evaluation.decode import DecodeConfig
from diffprobe.runs.plan import plan
from tests.docs.markdown import ROOT

TEXT = (ROOT / "docs/users/decode.md").read_text("utf-8")
RECORDED = ROOT / "docs/results/emoji-sd/decode"


def test_the_settings_of_its_commands_are_valid() -> None:
    commands = re.findall(r"^    diffprobe decode (.+)$", TEXT, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        _, *words = shlex.split(command)
        parse(DecodeConfig, settings_tree(words))


def test_every_setting_is_there_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", TEXT.partition("| setting |")[2], re.MULTILINE))
    assert list(rows) == [field.name for field in dataclasses.fields(DecodeConfig)]
    for field in dataclasses.fields(DecodeConfig):
        if isinstance(field.default, int | float):
            assert float(rows[field.name]) == field.default, field.name


def test_the_commands_of_the_example_are_those_of_an_experiment() -> None:
    commands = re.findall(r"^    diffprobe (?:extract|train) (.+)$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        experiment, *settings = shlex.split(command)
        plan(load_run(experiment.partition("=")[2], settings))


def test_the_example_is_recorded() -> None:
    shown = re.findall(r"^\| ((?:style|skin_tone|gender): .+) \|$", TEXT, re.MULTILINE)
    expected = []
    for target in ("style", "skin_tone", "gender"):
        result = read_result(RECORDED / f"{target}.json")
        parse(DecodeConfig, {key: value for key, value in result.config.items() if key != "direction"})
        ranked, words, text = result.metrics
        assert ranked.target == target and f"On {ranked.n} test images" in TEXT
        nulls = words.detail["control_nulls"]
        assert {nulls[name]["p"] for name in nulls} == {1 / 201}
        percentiles = (nulls[name]["percentile_95"] for name in ("random_direction", "shuffled_captions"))
        numbers = [f"{value:.2f}" for value in (words.value, *percentiles)]
        ends = f"{target}: {ranked.detail['positive']} against {ranked.detail['negative']}".replace("|", " or ")
        expected.append(" | ".join([ends, sum_of(words.detail["terms"]), *numbers, sum_of(text.detail["terms"])]))
    assert shown == expected
    terms = read_result(RECORDED / "gender.json").metrics[1].detail["terms"]
    alone = {term["phrase"]: f"{term['phrase']} alone has a cosine of {term['cosine']:.2f}" for term in terms}
    assert all(alone[word] in " ".join(TEXT.split()) for word in ("woman", "man"))


def sum_of(terms: Sequence[dict[str, Any]]) -> str:
    if len(terms) > 5:
        return f"{len(terms)} phrases"
    return " ".join(f"{term['coefficient']:+.2f} {term['phrase']}" for term in terms)
