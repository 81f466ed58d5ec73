"""`diffprobe demo` from shards to report, twice, on a tiny model; and what it refuses before it starts."""

from pathlib import Path

import pytest

from diffprobe.cli.main import main


def files_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_twice_from_shards_to_report(tiny_study, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stores = tmp_path / "stores"
    settings = [setting for setting in tiny_study if not setting.startswith("features.store")]
    command = ["demo", *settings, f"features.store={stores}", "output=out"]
    assert main(command) == 0
    first = capsys.readouterr().out
    assert "What a tiny model knows" in first and "16 train, 4 val, 4 test" in first
    assert first.count("24 images") == 3 and "kept from before" not in first
    assert "AUROC" in first and "noto emoji" in first and "diffprobe taps emoji-sd" in first
    page = Path("out/report.html").read_text()
    assert page.count('<article class="latent">') == 3 and "What a tiny model knows" in page

    assert main(["table", "tiny", "--results", "out"]) == 0
    table = capsys.readouterr().out
    assert "raw pixels" in table and table in first

    written = files_of(stores)
    assert main(command) == 0
    second = capsys.readouterr().out
    assert second.count("kept from before") == 3 and table in second
    assert files_of(stores) == written


@pytest.mark.slow
def test_check_validates_all_runs_and_loads_nothing(tiny_study, tmp_path, capsys):
    assert main(["demo", *tiny_study, f"output={tmp_path / 'out'}", "--check"]) == 0
    assert "8 runs, 3 stores" in capsys.readouterr().out and not (tmp_path / "out").exists()
    folder = tmp_path / "out, [für]=1"
    assert main(["demo", f"output='{folder}'", "--check"]) == 0
    assert str(folder) in (out := capsys.readouterr().out) and "17 runs, 5 stores" in out


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("panels.n_latent=3", "panels.n_latents"),
        ("panels.n_top=0", "at least 1"),
        ("tables=[tinny]", "tiny"),
        ("tables=[]", "tables is empty"),
        ("features.taps=[mid]", "mid_block"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(tiny_study, tmp_path, capsys, setting, words):
    assert main(["demo", *tiny_study, setting, f"output={tmp_path / 'out'}"]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "out").exists()


RUNS = "runs=[{experiment: tiny/sae}, {experiment: tiny/classifier, settings: ['control=raw_pixels']}]"


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("probe=logistic", "run 1 on the command line (tiny/sae): "),
        ("features.source=live", "run 1 on the command line (tiny/sae): features.source=live"),
        (
            "probe.grid.k=[2,4]",
            "run 2 on the command line (tiny/classifier control=raw_pixels): unknown key of probe.grid",
        ),
    ],
)
def test_the_check_names_the_run_with_the_error(tiny_study, tmp_path, capsys, setting, words):
    settings = [*tiny_study, RUNS, "tables=[tiny]", "on_page=[]", f"output={tmp_path / 'out'}"]
    assert main(["demo", "--check", *settings, setting]) == 2
    assert words in capsys.readouterr().err


def test_a_fault_in_a_demos_own_file_is_found_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments" / "x").mkdir(parents=True)
    file = tmp_path / "experiments" / "x" / "demo.yaml"
    text = """\
kind: demo
title: t
lead: l
tables: [emoji]
settings: [trainer.max_epochs=2]
runs:
  - {experiment: emoji/classifier, settings: [trainer.fast=true, data.limit=500]}
"""
    command = ["demo", "--check", "experiment=x/demo"]
    file.write_text(text)
    assert main(command) == 2
    err = capsys.readouterr().err
    run = "run 1 in experiments/x/demo.yaml, line 6 (emoji/classifier trainer.fast=true data.limit=500): "
    assert f"{run}unknown key 'trainer.fast' in experiments/x/demo.yaml, line 6." in err
    file.write_text(text.replace("max_epochs=2", "max_epochs=two").replace("trainer.fast=true, ", ""))
    assert main(command) == 2
    assert "expected int in experiments/x/demo.yaml, line 5." in capsys.readouterr().err
    assert main([*command, "trainer.max_epochs=2", "data.limit=x"]) == 2
    assert "on the command line." in capsys.readouterr().err


def test_an_experiment_that_is_no_demo_is_refused(capsys):
    assert main(["demo", "experiment=emoji/sae"]) == 2
    assert "'emoji/sae' is of kind 'probe'" in capsys.readouterr().err
