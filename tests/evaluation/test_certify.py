"""The flow of a certificate: kinds, results and pages; a new kind is one file."""

import json
import sys
from pathlib import Path

import pytest

import diffprobe.evaluation.certificates as kinds
from diffprobe.core.errors import ConfigError, UnknownName
from diffprobe.core.registry import CERTIFICATES
from diffprobe.core.result import read_result
from diffprobe.evaluation.certify import PAGE_FILE, certify, load_settings, open_method
from tests.evaluation.certificates.test_audit import counted, write

NEW_KIND = '''
"""A kind of method: a text file with a number that has to be 7."""

from dataclasses import dataclass

from diffprobe.analysis.certification.check import Certificate, Check, Rule, Subject
from diffprobe.evaluation.certificates.settings import WorldSettings

HELP = "a file that ends with .seven"
SIGNATURE = "() -> float"


@dataclass(frozen=True, kw_only=True)
class Config(WorldSettings):
    """Settings."""

    most: float = 7.5
    """Largest number."""


def accepts(path):
    return path.suffix == ".seven"


def certify(method, config):
    rule = Rule(keys="most", low=6.5, high=config.most)
    def subject(name, value):
        return Subject(name=name, why="<b>wrong</b>", checks=(Check(name="n", value=value, n=1, what="w", rule=rule),))
    return Certificate(kind="seven", method=subject("method", float(method.path.read_text())),
                       baselines=(subject("zero", 0.0),), facts={"a": "<i>"})
'''


@pytest.fixture
def new_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seven.py").write_text(NEW_KIND)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path)])
    monkeypatch.delitem(sys.modules, "diffprobe.evaluation.certificates.seven", raising=False)


@pytest.mark.parametrize(("number", "verdict"), [(7, "pass"), (8, "fail")])
def test_a_new_kind_is_one_file(new_kind: None, tmp_path: Path, number: int, verdict: str) -> None:
    assert "seven" in CERTIFICATES.names()
    file = tmp_path / "a.seven"
    file.write_text(str(number))
    assert open_method(str(file))[1] == "seven"
    found, path = certify(str(file), None, load_settings("seven", {}), output=tmp_path / "runs")
    assert found.verdict == verdict
    result = read_result(path)
    assert result.kind == "certificate" and result.metrics[0].value == float(verdict == "pass")
    assert [record.probe for record in result.metrics] == ["method", "method", "zero"]
    assert result.metrics[1].detail["passed"] is (verdict == "pass")
    assert result.artifacts.keys() == {"input/a.seven"}
    page = path.with_name(PAGE_FILE).read_text()
    assert "&lt;b&gt;wrong&lt;/b&gt;" in page and "<b>wrong" not in page and "<i>" not in page
    assert certify(str(file), None, load_settings("seven", {}), output=tmp_path / "runs")[1] == path


@pytest.mark.parametrize("name", CERTIFICATES.names())
def test_every_kind_keeps_the_contract(name: str, tmp_path: Path) -> None:
    module = CERTIFICATES.load(name)
    assert isinstance(module.HELP, str) and "->" in module.SIGNATURE
    assert not module.accepts(tmp_path) and not module.accepts(tmp_path / "missing")
    (tmp_path / "junk").write_bytes(b"\x00\xff{")
    assert not module.accepts(tmp_path / "junk")
    with pytest.raises(ConfigError, match="no_such_key"):
        load_settings(name, {"no_such_key": 1})


def test_what_is_not_a_method_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing"):
        open_method(str(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=tmp_path.name):
        open_method(str(tmp_path))
    with pytest.raises(ConfigError, match="kind") as caught:
        open_method("a.b:c")
    assert any(line.startswith("audit: (model") for line in caught.value.details)
    with pytest.raises(UnknownName, match="audits"):
        open_method("a.b:c", "audits")


def test_a_method_of_another_kind_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", counted("planted", 0))
    with pytest.raises(ConfigError, match="direction") as caught:
        open_method(str(file), "direction")
    assert caught.value.fix == "--kind audit"


def test_the_result_has_numbers_intervals_nulls_and_rules(tmp_path: Path) -> None:
    own = write(tmp_path / "own.json", counted("planted", 0))
    twin = write(tmp_path / "twin.json", counted("permuted", 1))
    config = load_settings("audit", {"twin": str(twin), "n_permutations": 99, "n_resamples": 50})
    _, path = certify(str(own), "audit", config, output=tmp_path)
    result = read_result(path)
    assert result.config["method"] == str(own) and result.config["least_spearman"] == 0.9
    spearman = next(record for record in result.metrics if record.name == "spearman")
    assert spearman.detail["null"]["smallest_p"] == 0.01
    assert spearman.detail["rule"]["text"] == "at least 0.9, p at most 0.05"
    assert all("interval" in record.detail for record in result.metrics[1:])
    assert json.loads(path.read_text())["metrics"]
