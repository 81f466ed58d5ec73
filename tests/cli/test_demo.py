"""`diffprobe demo` from shards to report, twice, on a tiny model; and what it refuses before it starts."""

from pathlib import Path

import pytest

from diffprobe.cli.demo import split_name
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


@pytest.mark.slow
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


def test_a_demo_is_chosen_by_its_name_and_settings_stay_settings():
    assert split_name([]) == (None, []) and split_name(["output=x", "data=emoji"]) == (None, ["output=x", "data=emoji"])
    assert split_name(["seed=1", "scenes", "output=x"]) == ("scenes", ["seed=1", "output=x"])
    assert split_name(["trainer.max_epochs"]) == (None, ["trainer.max_epochs"])  # refused with the settings


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["scene"], ["unknown demo 'scene'", "nearest: scenes", "allowed: emoji, scenes"]),
        (["emoji", "scenes"], ["2 demos are named: emoji, scenes"]),
        (["scenes", "experiment=emoji/demo"], ["scenes/demo, emoji/demo"]),
        (["trainer.max_epochs"], ["'trainer.max_epochs' is not of the form key=value"]),
        (["scenes", "n_per_rol=3"], ["n_per_rol", "n_per_role"]),
        (["scenes", "reader=absent"], ["no attribute reader in 'absent'"]),
        (["scenes", "twins=[{model: absent, world: planted}, {model: b, world: permuted}]"], ["absent"]),
        (["scenes", "prompts=[a cok]"], ["'a cok'"]),
    ],
)
def test_a_wrong_name_or_setting_of_a_demo_is_refused(capsys, words, found):
    assert main(["demo", *words, "--check"]) == 2
    err = capsys.readouterr().err
    assert all(text in err for text in found), err


def test_the_check_of_the_demo_of_scenes_samples_nothing(tmp_path, capsys, tiny_scene_twins):
    folder = tmp_path / "out"
    assert main(["demo", "scenes", tiny_scene_twins, f"output={folder}", "--check"]) == 0
    assert "the configuration is valid" in (out := capsys.readouterr().out) and "9 prompts" in out
    assert not folder.exists()


def test_the_demo_of_scenes_prints_its_tables_and_writes_the_page(tmp_path, capsys, tiny_scene_twins, monkeypatch):
    """Its sampling is in tests/demo/scenes; here the models are not asked."""
    from diffprobe.core.errors import EmptyClass
    from diffprobe.evaluation import rates

    def nothing(config):
        raise EmptyClass(f"stopped at {Path(config.model).name} in {config.output}")

    monkeypatch.setattr(rates, "evaluate_rates", nothing)
    assert main(["demo", f"output={tmp_path}", "scenes", tiny_scene_twins]) == 2
    captured = capsys.readouterr()
    assert "A world whose rates are known" in captured.out and f"stopped at one in {tmp_path}" in captured.err


@pytest.fixture
def tiny_scene_twins(tmp_path):
    """The setting that names two tiny pipelines of 64 pixels."""
    from diffprobe.backbones.families import sd_unet

    for seed, name in enumerate(("one", "two")):
        sd_unet.tiny(tmp_path / "twins" / name, seed=seed, resolution=64)
    pairs = (("one", "planted"), ("two", "permuted"))
    return f"twins=[{', '.join(f'{{model: {tmp_path}/twins/{name}, world: {world}}}' for name, world in pairs)}]"
