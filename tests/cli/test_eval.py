"""`diffprobe eval`, through the door of the command line."""

import pytest

from diffprobe.cli.main import main

EXPERIMENT = """\
kind: evaluate_backbone
defaults:
  - /data: emoji
  - _self_
n_candidates: 2
n_choice_timesteps: 1
group_attribute: style
by_attributes: [style]
gates:
  psnr_db/test: {at_least: -100}
"""


@pytest.fixture
def command(tiny_sd, tiny_shards, tmp_path, monkeypatch):
    (tmp_path / "experiments" / "mine").mkdir(parents=True)
    (tmp_path / "experiments" / "mine" / "evaluate.yaml").write_text(EXPERIMENT)
    monkeypatch.setenv("DIFFPROBE_CONFIGS", str(tmp_path))
    settings = ["experiment=mine/evaluate", f"data.path={tiny_shards}", f"output={tmp_path / 'runs'}"]
    return ["eval", "backbone", str(tiny_sd), *settings]


@pytest.mark.slow
def test_numbers_and_nothing_else_are_printed(command, tmp_path, capfd):
    assert main(command) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert [line for line in lines if line.startswith("test psnr_db")][0].endswith(")")  # its controls
    (choice,) = (line for line in lines if line.startswith("val caption_of_2_accuracy"))
    assert " [" in choice and "n=4  (controls: chance 0.5)" in choice
    after = lines[lines.index(choice) + 1 :]
    assert after[0].startswith("  minus chance: ") and after[0].endswith("]")
    assert after[1].startswith("  by style: noto ") and after[1].count("(n=2)") == 2
    (path,) = (tmp_path / "runs" / "mine" / "evaluate").glob("*/result.json")
    assert f"tables: {path.with_name('tables.md')}" in lines and path.with_name("tables.md").is_file()
    assert f"result: {path}" in lines
    assert not [line for line in lines if "gate" in line]
    assert err == ""  # no bar, warning or notice of the libraries


@pytest.mark.slow
def test_a_model_may_lie_in_any_folder(command, tiny_sd, tmp_path, capsys):
    folder = tmp_path / "bilder für alle, [a] 'b'"
    folder.symlink_to(tiny_sd)
    assert main([*command[:2], str(folder), *command[3:], "data.limit=4"]) == 0
    assert "psnr_db" in capsys.readouterr().out


@pytest.mark.slow
def test_a_missed_gate_is_the_exit_status(command, capsys):
    assert main([*command, "gates={psnr_db/test: {at_least: 200}}"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("gate missed: psnr_db/test is ") and last.endswith(", at least 200 is required")


def test_errors_are_for_people(command, tmp_path, capsys):
    assert main([*command[:2], str(tmp_path / "nothing"), *command[3:]]) == 2
    assert "WeightsMissing: there is no folder" in capsys.readouterr().err
    assert main([*command, "group_attribute=stile"]) == 2
    assert "unknown group_attribute 'stile'.\n  nearest: style" in capsys.readouterr().err
    assert main([*command, "n_candidate=3"]) == 2
    assert "n_candidates" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def sae_settings(tiny_sd, tiny_shards, tmp_path):
    return [
        "probe=topk",
        "probe.params.k=4",
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={tiny_shards}",
        "features.taps=[mid_block]",
        "features.timesteps=[20]",
        "features.source=live",
        f"output={tmp_path / 'runs'}",
        "trainer.max_epochs=1",
        "trainer.enable_progress_bar=false",
        "logger=none",
    ]


@pytest.mark.slow
def test_what_an_autoencoder_costs_is_printed(sae_settings, tmp_path, capfd):
    assert main(["train", *sae_settings]) == 0
    (folder,) = (tmp_path / "runs").glob("sae/*")
    capfd.readouterr()
    settings = ["group_attribute=null", "timesteps=[20,900]", "device=cpu", f"output={tmp_path / 'runs'}"]
    assert main(["eval", "sae", str(folder), *settings]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    (rise,) = (line for line in lines if line.startswith("test delta_mse ") and "mid_block@t900:empty:mean" in line)
    assert " [" in rise and "n=4" in rise and "mean_ablation " in rise and "whole_map_ablation " in rise
    assert lines[-1].startswith(f"result: {tmp_path / 'runs' / 'emoji' / 'evaluate_sae'}") and err == ""


@pytest.mark.slow
def test_the_classes_of_latents_are_printed(sae_settings, tmp_path, capfd):
    stored = [setting for setting in sae_settings if not setting.startswith("features.source")]
    stored += [f"features.store={tmp_path / 'stores'}", "probe.params.n_latents=16"]
    assert main(["extract", *stored]) == 0 and main(["train", *stored]) == 0
    (folder,) = (tmp_path / "runs").glob("sae/*")
    capfd.readouterr()
    few = ["n_top_images=2", "top=[3,6]", "n_permutations=5", "n_renumberings=5", "device=cpu"]
    assert main(["eval", "labels", str(folder), *few, f"output={tmp_path / 'runs'}"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[-1].startswith(f"result: {tmp_path / 'runs' / 'emoji' / 'labels' / 'evaluate'}") and err == ""
    heads = [line.partition(": ")[0] for line in lines if not line.startswith((" ", "result"))]
    cell = "mid_block@t20:empty:mean"
    assert heads == [f"{cell}, {split}, {r}" for r in ("described", "released") for split in ("train", "val", "test")]
    assert any(line.startswith("  sigma_label_released = ") and "renumbered classes" in line for line in lines)
    assert main(["eval", "labels", str(folder), "--check"]) == 0


@pytest.mark.slow
def test_all_members_of_a_grid_are_measured_and_named(sae_settings, tmp_path, capfd):
    assert main(["train", *sae_settings, "probe.grid.k=[2,4]", f"output='{tmp_path}/läufe, a=1'"]) == 0
    last = capfd.readouterr().out.splitlines()[-1]
    folder = last.removeprefix("result: ").removesuffix("/result.json")
    assert main(["eval", "sae", folder, "group_attribute=null", "device=cpu", f"output={tmp_path / 'runs'}"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    heads = [line for line in lines if line.endswith(":")]
    assert [head.rpartition("/")[2] for head in heads] == ["k=2:", "k=4:"] and err == ""
    assert sum(line.startswith("test delta_mse ") for line in lines) == 2
    assert len({line for line in lines if line.startswith("result: ")}) == 2
    member = f"{folder}/members/k=2"
    assert main(["eval", "sae", member, "group_attribute=null", "device=cpu", f"output={tmp_path / 'one'}"]) == 0
    found = [line for line in capfd.readouterr().out.splitlines() if line.startswith("test delta_mse ")]
    assert found == [next(line for line in lines if line.startswith("test delta_mse "))]


@pytest.mark.parametrize(("what", "needed"), [("sae", "RUN_FOLDER"), ("backbone", "BACKBONE")])
def test_only_what_is_needed_is_asked_for(what, needed, capsys):
    with pytest.raises(SystemExit):
        main(["eval", what])
    assert capsys.readouterr().err.endswith(f"the following arguments are required: {needed}\n")


def test_errors_of_an_sae_are_for_people_too(tmp_path, capsys):
    assert main(["eval", "sae", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ConfigError: ") and str(tmp_path) in err and "result.json" in err and "diffprobe" in err
    assert main(["eval", "sae", str(tmp_path), "timestep=3"]) == 2
    assert "timesteps" in capsys.readouterr().err
    assert main(["eval", "sae", str(tmp_path), "experiment=emoji/evaluate"]) == 2
    assert capsys.readouterr().err.startswith("ConfigError: ")


@pytest.mark.slow
def test_use_is_printed_and_stands_beside_its_readout_in_tables(tiny_sd, tiny_shards, tmp_path, capfd):
    """A classifier is trained, what its cells are used for is measured, and one table command shows both."""
    settings = [
        "probe=linear",
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={tiny_shards}",
        "features.taps=[mid_block,up_blocks.1]",
        "features.timesteps=[20,500]",
        "features.source=live",
        "probe.targets=[style]",
        f"output={tmp_path / 'runs'}",
        "trainer.max_epochs=1",
        "trainer.enable_progress_bar=false",
        "logger=none",
    ]
    assert main(["train", *settings]) == 0
    (folder,) = (path.parent for path in (tmp_path / "runs").rglob("result.json"))
    capfd.readouterr()
    assert main(["eval", "use", str(folder), "limit=4", "train_limit=4", f"output={tmp_path / 'runs'}"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    start = "patching: val relative_delta_mse = "
    assert [line for line in lines if line.startswith(start) and line.endswith("n=4  up_blocks.1@t500:empty:mean")]
    assert lines[-1].startswith(f"result: {tmp_path / 'runs'}") and err == ""
    assert main(["table", str(tmp_path / "runs"), "--figure", str(tmp_path / "both.svg")]) == 0
    out, err = capfd.readouterr()
    assert (
        "balanced accuracy of style by layer and timestep" in out and "relative delta mse by layer and timestep" in out
    )
    assert err.count("figure: ") == 5  # the readout's, and one per intervention


@pytest.mark.slow
def test_latents_are_printed_with_their_table(tiny_sd, tmp_path, capfd):
    from tests.evaluation.planted_use import planted_use_run

    run = planted_use_run(tmp_path / "planted", tiny_sd)
    capfd.readouterr()
    command = ["eval", "latents", str(run), "limit=12", "n_permutations=499", "n_generate=0", "device=cpu"]
    assert main([*command, f"output={tmp_path / 'runs'}"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert "1 of 3 latents are never active on these samples: not measured" in lines
    assert any(line.startswith("test used_share = 0.5") for line in lines)
    assert any(line.split()[:1] == ["0"] and line.endswith("yes") for line in lines)
    assert lines[-2].startswith(f"table: {tmp_path / 'runs' / 'emoji' / 'latent_use'}")
    assert lines[-1].endswith("result.json")


def test_errors_of_latents_are_for_people(tmp_path, capsys):
    assert main(["eval", "latents", str(tmp_path)]) == 2
    assert "is not the folder of a finished run" in capsys.readouterr().err
    assert main(["eval", "latents", str(tmp_path), "n_generate=0", "window=[0,500]", "--check"]) == 2
    assert "window has no effect" in capsys.readouterr().err
    assert main(["eval", "latents", str(tmp_path), "experiment=scenes/latent_use", "latents=[3]", "--check"]) == 0
    assert capsys.readouterr().out == "the configuration is valid\n"


def test_errors_of_use_are_for_people(tmp_path, capsys):
    assert main(["eval", "use", str(tmp_path)]) == 2
    assert "is not the folder of a finished run" in capsys.readouterr().err
    assert main(["eval", "use", "experiment=emoji/classifier", "interventions=[zero]", "--check"]) == 2
    assert "zero_ablation" in capsys.readouterr().err
    assert main(["eval", "use", "experiment=emoji/classifier", "limit=3", "data.limit=5", "--check"]) == 0
    assert capsys.readouterr().out == "the configuration is valid\n"


def test_errors_of_generations_are_for_people(capsys):
    assert main(["eval", "generations", "experiment=emoji/classifier", "attributes=[style]", "--check"]) == 2
    assert "features.condition=caption" in capsys.readouterr().err
    probe = ["experiment=emoji/classifier", "features.condition=caption", "--check"]
    assert main(["eval", "generations", *probe]) == 2
    assert "attributes=[NAME]" in capsys.readouterr().err
    assert main(["eval", "generations", *probe, "attributes=[style]", "limit=3"]) == 0
    assert capsys.readouterr().out == "the configuration is valid\n"
    assert main(["eval", "generations", "experiment=emoji/use"]) == 2
    assert "diffprobe eval use experiment=emoji/use" in capsys.readouterr().err


def test_settings_of_rates_are_checked_without_a_reader(tmp_path, capsys):
    command = ["eval", "rates", "renderer", f"reader={tmp_path}", f"output={tmp_path / 'runs'}"]
    assert main([*command, "world=permuted", "--check"]) == 0
    assert capsys.readouterr().out == "the configuration is valid\n"
    assert main([*command, "guidance=-1", "--check"]) == 2
    assert "guidance=-1" in capsys.readouterr().err
    assert main(command) == 2
    assert "there is no attribute reader" in capsys.readouterr().err
