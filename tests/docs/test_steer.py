"""The page about steering: its commands and its table of settings are those of the code."""

import dataclasses
import re
import shlex

from diffprobe.cli.arguments import settings_tree
from diffprobe.config.parse import parse
from diffprobe.evaluation.steer import SteerConfig
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
