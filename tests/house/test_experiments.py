"""Every experiment file and preset composes, parses and tells how it is run; a new one is tested by existing."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from diffprobe.config import search_path
from diffprobe.config.compose import compose, load_run, validate
from diffprobe.config.kinds import PROBE
from diffprobe.config.parse import parse, to_tree
from diffprobe.config.schema import RunConfig
from diffprobe.core.registry import PROBE_KINDS, probes

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted(
    name for name, path in search_path.experiments().items() if path.is_relative_to(ROOT / "experiments")
)
FIELDS = {field.name for field in dataclasses.fields(RunConfig)}
CHOICES = [(group, choice) for group, choices in search_path.groups().items() for choice in choices if group in FIELDS]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_composes_parses_and_comes_back(name: str) -> None:
    composed = compose(name)
    config = validate(composed)
    assert parse(type(config), to_tree(config)) == config
    if composed.kind == PROBE:
        assert config.experiment == name
        probe = probes(config.probe.kind).load(config.probe.name)
        parse(probe.Config, config.probe.params)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_how_it_is_run(name: str) -> None:
    lines = search_path.experiments()[name].read_text().splitlines()
    header = itertools.takewhile(lambda line: line.startswith("#"), lines)
    assert any(line.startswith("#   diffprobe ") and f"experiment={name}" in line for line in header)


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: str(value))
def test_every_preset_composes_and_parses(group: str, choice: str) -> None:
    config = load_run(None, [f"{group}={choice}"])
    assert parse(RunConfig, to_tree(config)) == config


def test_each_probe_has_a_preset() -> None:
    names = {name for kind in PROBE_KINDS.names() for name in probes(kind).names()}
    presets = [load_run(None, [f"probe={choice}"]).probe for choice in search_path.groups()["probe"]]
    assert names == {preset.name for preset in presets}
