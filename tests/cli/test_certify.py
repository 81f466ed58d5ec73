"""`diffprobe certify`."""

from pathlib import Path

import pytest

from diffprobe.cli.arguments import settings_tree
from diffprobe.cli.main import main
from diffprobe.core.errors import ConfigError
from tests.evaluation.certificates.test_audit import counted, write


def test_it_prints_the_checks_and_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write(tmp_path / "own.json", counted("planted", 0))
    twin = write(tmp_path / "twin.json", counted("permuted", 1))
    words = ["certify", str(own), f"twin={twin}", "n_permutations=99", "n_resamples=50", "--output", str(tmp_path)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "verdict: pass" in shown and "separation" in shown and "words only" in shown
    assert main([*words[:2], f"twin={own}", *words[3:]]) == 1
    assert "verdict: fail" in capsys.readouterr().out


def test_a_check_loads_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = write(tmp_path / "own.json", counted("planted", 0))
    assert main(["certify", str(own), "--check", "twin=missing.json"]) == 0
    assert "valid" in capsys.readouterr().out
    assert main(["certify", str(own), "--check", "least_spearmn=0.5"]) != 0
    assert "least_spearman" in capsys.readouterr().err


def test_settings_are_typed_as_yaml() -> None:
    assert settings_tree(["a=1", "b=[x, y]", "c=x:y=z", "d=0.5"]) == {"a": 1, "b": ["x", "y"], "c": "x:y=z", "d": 0.5}


@pytest.mark.parametrize("wrong", [["a"], ["a=1", "a=2"], ["a=[1"], ["a b=1"]])
def test_wrong_settings_are_refused(wrong: list[str]) -> None:
    with pytest.raises(ConfigError, match="a"):
        settings_tree(wrong)
