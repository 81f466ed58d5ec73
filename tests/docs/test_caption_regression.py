"""The page about caption regressors: its commands and its table of settings are those of the code."""

import dataclasses
import re
import shlex

from diffprobe.cli.arguments import settings_tree
from diffprobe.config.compose import load_run
from diffprobe.config.parse import parse
from diffprobe.evaluation.caption_direction import CaptionDirectionConfig
from diffprobe.runs.plan import plan
from diffprobe.training.caption_scores import CAPTION_RECALL, IMAGE_RECALL, R2
from tests.docs.markdown import ROOT

TEXT = (ROOT / "docs/users/caption-regression.md").read_text("utf-8")


def test_the_settings_of_its_commands_are_valid() -> None:
    commands = re.findall(r"^    diffprobe translate (.+)$", TEXT, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        _, *words = shlex.split(command)
        parse(CaptionDirectionConfig, settings_tree(words))
    for command in re.findall(r"^    diffprobe train (.+)$", TEXT, re.MULTILINE):
        experiment, *settings = shlex.split(command)
        plan(load_run(experiment.partition("=")[2], [word for word in settings if "ladder" not in word]))


def test_every_setting_and_metric_is_there() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", TEXT.partition("| setting |")[2], re.MULTILINE)
    assert rows == [field.name for field in dataclasses.fields(CaptionDirectionConfig)]
    for name in (R2, CAPTION_RECALL.format(1), IMAGE_RECALL.format(1)):
        assert f"`{name}`" in TEXT
