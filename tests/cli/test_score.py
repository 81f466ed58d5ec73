"""`diffprobe score`."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main

FILE = """
kind: score
backbone: {{path: {model}, device: cpu}}
data: {{path: {shards}}}
group_by: colour
candidates: {{n: 3}}
n_timesteps: 2
random_denoiser: false
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, tiny_sd: Path, tiny_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(FILE.format(model=tiny_sd, shards=tiny_shards))
    monkeypatch.chdir(tmp_path)


def test_it_prints_the_table_and_names_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "experiment=mine", "limit=3"]) == 0
    shown = capsys.readouterr().out
    assert "caption_of_3_accuracy" in shown and "against denoiser passes" in shown
    assert Path(shown.splitlines()[-1].removeprefix("result: ")).is_file()


def test_a_check_prints_the_passes_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "mine", "limit=10", "backbone.path=nowhere", "--check"]) == 0
    shown = capsys.readouterr().out
    assert "6 for one set" in shown and "12 for 2 sets" in shown and "120" in shown and not Path("runs").exists()


def test_a_check_prints_training_and_overlap_too(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["method=dsd", "dsd.few_shot.images=4", "dsd.few_shot.steps=1200"]
    assert main(["score", "mine", *few, "--check"]) == 0 and "1,200 steps" in capsys.readouterr().out
    classes = ["candidates.kind=classes", "candidates.attribute=colour", "overlap.images=7"]
    assert main(["score", "mine", *classes, "--check"]) == 0 and "of 7 images" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "fact"), [([], "experiment"), (["mine", "noise_sets=1"], "noise_sets")])
def test_what_is_missing_or_wrong_is_named(words: list[str], fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *words]) == 2 and fact in capsys.readouterr().err
