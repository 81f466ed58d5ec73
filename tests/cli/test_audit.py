"""`diffprobe audit`."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main
from diffprobe.core.result import read_result
from tests.evaluation.audit_world import settings, write_store

FILE = """
kind: audit
cells: ["mid@t1"]
templates: ["view 0 of a {subject}", "view 1 of a {subject}", "view 2 of a {subject}"]
subjects: [cook, judge, poet, {name: pilot, group: air}, miner, actor]
axes: [{name: texture, positive: [striped], negative: [plain]}]
descriptors: [red, blue, old]
n_resamples: 30
n_permutations: 99
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(FILE)
    write_store(tmp_path / "latents", settings(n_templates=3))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_prints_the_tables_and_names_the_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "experiment=mine", "store=latents"]) == 0
    shown = capsys.readouterr().out
    assert "texture: positive is striped, negative is plain" in shown and "Nothing can be significant: 3" in shown
    paths = dict(
        line.split(": ", 1) for line in shown.splitlines() if line.startswith(("result", "table", "page", "rates"))
    )
    assert all(Path(path).is_file() for path in paths.values()) and len(paths) == 4
    assert read_result(paths["result"]).experiment == "mine"


@pytest.mark.parametrize("name", ["mine", "experiments/mine.yaml", "mine.yaml"])
def test_a_name_or_a_file_is_enough(folder: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", name, "--check"]) == 0
    assert "valid" in capsys.readouterr().out and not (folder / "runs").exists()


def test_its_prompts_are_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "mine", "--prompts", "prompts.txt"]) == 0
    lines = (folder / "prompts.txt").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 3 * (6 + 12 + 3) and "63 prompts" in capsys.readouterr().out
    assert "view 2 of a striped pilot" in lines


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["mine"], ["store", "63 prompts", "--prompts"]),
        ([], ["experiment", "audits/emoji", "mine"]),
        (["mine", "store=no-folder"], ["no-folder", "prompt latents"]),
        (["mine", "templates=[a cook]"], ["a cook", "{subject}"]),
        (["mine", "subjects=[cook,cook]"], ["cook", "twice"]),
        (["mine", "n_resample=3"], ["n_resamples"]),
        (["scenes/rates"], ["evaluate_rates", "diffprobe eval rates"]),
    ],
)
def test_what_is_wrong_is_named(
    folder: Path, words: list[str], facts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *words]) == 2
    shown = capsys.readouterr().err
    assert all(fact in shown for fact in facts), shown
