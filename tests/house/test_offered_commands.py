"""Every command that the README and the demos offer is one that the program takes; a new one is tested by existing."""

import argparse
import shlex
from pathlib import Path

import pytest

from diffprobe.cli.main import VERBS
from diffprobe.config import search_path
from diffprobe.config.compose import compose, load, split_experiment, validate

ROOT = Path(__file__).resolve().parents[2]
DEMOS = [name for name in search_path.experiments() if compose(name).kind == "demo"]
COMPOSED = ("extract", "train", "demo")  # verbs whose settings are all there is to know


def commands_of_readme() -> list[str]:
    lines = (line.strip() for line in (ROOT / "README.md").read_text("utf-8").splitlines() if line.startswith("    "))
    return [line for line in lines if line.startswith("diffprobe ")]


def commands_of_demos() -> list[str]:
    return [command for name in DEMOS for command in validate(compose(name)).next_steps]


@pytest.mark.parametrize("command", [*commands_of_readme(), *commands_of_demos()])
def test_a_command_is_taken(command: str) -> None:
    _, verb, *rest = shlex.split(command, comments=True)
    parser = argparse.ArgumentParser(exit_on_error=False)
    module = VERBS.load(verb.replace("-", "_"))
    module.add_arguments(parser)
    arguments = parser.parse_args(rest)
    if verb in COMPOSED:
        experiment, settings = split_experiment(None, arguments.settings)
        load(experiment, settings)


def test_there_are_commands_to_test() -> None:
    assert len(commands_of_readme()) >= 5 and len(commands_of_demos()) >= 5
