"""The page about decoding: its commands and its table of settings are those of the code."""

import dataclasses
import re
import shlex

from diffprobe.cli.arguments import settings_tree
from diffprobe.config.parse import parse
from diffprobe.evaluation.decode import DecodeConfig
from tests.docs.markdown import ROOT

TEXT = (ROOT / "docs/users/decode.md").read_text("utf-8")


def test_the_settings_of_its_commands_are_valid() -> None:
    commands = re.findall(r"^    diffprobe decode (.+)$", TEXT, re.MULTILINE)
    assert len(commands) >= 2
    for command in commands:
        _, *words = shlex.split(command)
        parse(DecodeConfig, settings_tree(words))


def test_every_setting_is_there_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", TEXT.partition("| setting |")[2], re.MULTILINE))
    assert list(rows) == [field.name for field in dataclasses.fields(DecodeConfig)]
    for field in dataclasses.fields(DecodeConfig):
        if isinstance(field.default, int | float):
            assert float(rows[field.name]) == field.default, field.name
