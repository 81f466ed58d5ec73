"""The page about certificates: its commands, thresholds, example and kinds are those of the code."""

import json
import re
import shlex

import numpy as np
import pytest

from diffprobe.analysis.certification.intervals import rank_correlation, rank_correlation_cap
from diffprobe.cli.arguments import settings_tree
from diffprobe.core.registry import CERTIFICATES
from diffprobe.evaluation.certificates import audit, dictionary, direction, readout
from diffprobe.evaluation.certify import load_settings
from diffprobe.shards.scenes.world import load_world
from tests.docs.markdown import ROOT

TEXT = (ROOT / "docs/users/certify.md").read_text("utf-8")


def test_the_settings_of_its_commands_are_valid() -> None:
    commands = re.findall(r"^    diffprobe certify (.+)$", TEXT, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        method, *words = shlex.split(command)
        settings = [word for word in words if "=" in word]
        kind = words[words.index("--kind") + 1] if "--kind" in words else "audit" if ".json" in method else "direction"
        load_settings(kind, settings_tree(settings))


def test_its_thresholds_are_the_defaults() -> None:
    configs = (direction.Config(backbone="pixels"), audit.Config(), dictionary.Config(backbone="pixels"))
    configs += (readout.Config(cell="a@t0"),)  # type: ignore[assignment]
    found = re.findall(r"`((?:least|most)_\w+)`, (\d[\d.]*\d)", TEXT)
    assert len(found) >= 9
    for name, number in found:
        (value,) = {getattr(config, name) for config in configs if hasattr(config, name)}
        assert float(number) == value, name
    assert (audit.Config().least_slope, audit.Config().most_slope) == (0.8, 1.2) and "0.8 to 1.2" in TEXT


def test_every_kind_and_signature_is_there() -> None:
    for name in CERTIFICATES.names():
        module = CERTIFICATES.load(name)
        assert module.SIGNATURE.partition(",")[0] in TEXT, name


def test_its_numbers_of_the_worlds_are_right() -> None:
    roles = load_world().roles
    own, twin = (np.array([role.striped[world] for role in roles]) for world in (0, 1))
    assert f"{rank_correlation_cap(own):.3f} for the shipped world" in TEXT
    assert f"{rank_correlation(own, twin):.3f}" in TEXT


def test_its_example_is_an_audit_that_lacks_roles(tmp_path: object) -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    tree = json.loads(block)
    assert tree["format"] == audit.FORMAT
    path = tmp_path / "a.json"  # type: ignore[operator]
    tree["rates"] = dict.fromkeys(load_world().names("role"), tree["rates"]["cook"])
    path.write_text(json.dumps(tree))
    assert audit.read_audit(path, load_world().names("role")).level == pytest.approx(0.95)
