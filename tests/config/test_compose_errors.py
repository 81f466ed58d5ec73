"""Errors of files that Hydra and YAML cannot merge name the file and the line."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main
from diffprobe.config.compose import load
from diffprobe.core.errors import ConfigError

FOREIGN = "defaults: [default]\nmax_epochs: 3\n"
"""A preset of another project with Hydra."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "configs" / "probe").mkdir(parents=True)
    (tmp_path / "experiments" / "x").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("experiments/x/e.yaml", b"seed: 1\ntrainer: {}\ntrainer: {}\n", "found duplicate key trainer, in line 3."),
        ("experiments/x/e.yaml", b"seed: 1\ndata: [\n", "in line 3."),
        ("configs/probe/mine.yaml", b"kind: sae\n\tname: topk\n", "cannot start any token, in line 2."),
        ("configs/probe/mine.yaml", b"# caf\xe9\nkind: sae\n", "can't decode byte 0xe9"),
    ],
)
def test_yaml_that_cannot_be_read_is_named_with_its_line(folder: Path, file: str, text: bytes, words: str) -> None:
    (folder / file).write_bytes(text)
    with pytest.raises(ConfigError) as caught:
        load(None, ["experiment=x/e"] if "experiments" in file else ["probe=mine"])
    assert str(caught.value).startswith(f"{file} is not readable YAML: ") and words in str(caught.value)


def test_an_interpolation_that_leads_nowhere_has_file_and_line(folder: Path) -> None:
    (folder / "configs" / "probe" / "mine.yaml").write_text("kind: sae\nname: ${paths.name}\n")
    with pytest.raises(ConfigError, match=r"'paths.name' not found\n  read in configs/probe/mine.yaml, line 2"):
        load(None, ["probe=mine"])
    with pytest.raises(ConfigError, match="'paths.n' not found") as caught:
        load(None, ["trainer.max_epochs=${paths.n}"])
    assert "read in" not in str(caught.value)


def test_a_file_in_place_of_a_shipped_preset_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "configs" / "trainer").mkdir()
    (folder / "configs" / "trainer" / "cpu.yaml").write_text(FOREIGN)
    shown = "configs/trainer/cpu.yaml (in place of the shipped file of that name)"
    assert main(["config"]) == 2
    err = capsys.readouterr().err
    assert f"selects an unknown trainer 'default'.\n  read in {shown}\n" in err and "fix: rename" in err
    (folder / "configs" / "trainer" / "cpu.yaml").write_text("max_epochs: 3\nfast: true\n")
    assert main(["config"]) == 2
    assert f"unknown key 'trainer.fast' in {shown}, line 2." in capsys.readouterr().err
    (folder / "configs" / "trainer" / "mine.yaml").write_text(FOREIGN)
    assert main(["config", "trainer=mine"]) == 2
    err = capsys.readouterr().err
    assert "read in configs/trainer/mine.yaml\n" in err and "shipped" not in err and "fix:" not in err
