"""`diffprobe score`."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main
from diffprobe.core.result import read_result

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


@pytest.mark.slow
def test_parts_make_the_result_of_one_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["score", "experiment=mine", "chunk=1"]
    assert main([*settings, "--process", "1/2"]) == 0
    assert "part 1/2 is scored; errors of other parts are missing" in capsys.readouterr().out
    monkeypatch.setenv("RANK", "0")  # as torchrun numbers them
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([*settings, "--figure", "passes.svg"]) == 0
    shown = capsys.readouterr()
    assert "process 0/2 (RANK=0, WORLD_SIZE=2)" in shown.err and "figure: passes.svg" in shown.out
    two = Path(next(line for line in shown.out.splitlines() if line.startswith("result: ")).removeprefix("result: "))
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert main([*settings, "output=alone"]) == 0
    one = Path("alone") / two.relative_to("runs")
    assert read_result(one).metrics == read_result(two).metrics and Path("passes.svg").stat().st_size > 1000


def test_a_wrong_part_or_figure_is_refused_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["score", "mine", "--process", "2/2"])
    assert "I/N with I from 0 to N-1" in capsys.readouterr().err
    assert main(["score", "mine", "--figure", "x.gif"]) == 2 and ".svg" in capsys.readouterr().err


def test_a_check_prints_the_passes_and_loads_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", "mine", "limit=10", "backbone.path=nowhere", "--check"]) == 0
    shown = capsys.readouterr().out
    assert "6 for one set" in shown and "12 for 2 sets" in shown and "120" in shown and not Path("runs").exists()
    assert main(["score", "mine", "generated.steps=5", "text_free_model=other", "--check"]) == 0
    shown = capsys.readouterr().out
    assert "24 for 2 sets and the text-free model and generated images" in shown and "a generated image: 10" in shown


def test_a_check_prints_training_and_overlap_too(capsys: pytest.CaptureFixture[str]) -> None:
    few = ["method=dsd", "dsd.few_shot.images=4", "dsd.few_shot.steps=1200"]
    assert main(["score", "mine", *few, "--check"]) == 0 and "1,200 steps" in capsys.readouterr().out
    classes = ["candidates.kind=classes", "candidates.n=10", "candidates.attribute=colour", "overlap.images=7"]
    assert main(["score", "mine", *classes, "--check"]) == 0 and "of 7 images" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "fact"), [([], "experiment"), (["mine", "noise_sets=1"], "noise_sets")])
def test_what_is_missing_or_wrong_is_named(words: list[str], fact: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["score", *words]) == 2 and fact in capsys.readouterr().err
