"""`diffprobe train`, through the door of the command line."""

import pytest

from diffprobe.cli.main import main
from diffprobe.core.result import read_result


@pytest.fixture
def settings(tiny_sd, tiny_shards, tmp_path):
    return [
        f"backbone.path={tiny_sd}",
        "backbone.device=cpu",
        f"data.path={tiny_shards}",
        "data.batch_size=8",
        "features.taps=[mid_block]",
        "features.timesteps=[20]",
        f"features.store={tmp_path / 'stores'}",
        f"output={tmp_path / 'runs'}",
        "probe=linear",
        "probe.targets=[style]",
        "trainer.max_epochs=1",
        "trainer.enable_progress_bar=false",
    ]


@pytest.mark.slow
def test_extract_then_train(settings, tmp_path, capsys):
    assert main(["extract", *settings, "--quiet"]) == 0
    capsys.readouterr()
    with pytest.warns(UserWarning, match="1 of 1 classifiers stopped far from convergence"):  # one epoch is short
        assert main(["train", *settings]) == 0
    out, err = capsys.readouterr()
    (result,) = (tmp_path / "runs").glob("classifier/*/result.json")
    assert f"result: {result}" in out and "test accuracy = " in out and "shuffled_labels" in out
    assert "GPU available" not in err and "Warning" not in err
    assert main(["rescore", str(result.parent)]) == 0
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.slow
def test_a_list_of_seeds_trains_a_run_for_each(settings, tmp_path, capsys):
    assert main(["extract", *settings, "seed=[0,1]", "--quiet"]) == 0
    command = ["train", *settings, "seed=[0,1]"]
    assert main([*command, "--check"]) == 0
    assert capsys.readouterr().out.count(str(tmp_path / "runs" / "classifier")) == 2
    assert main(command) == 0
    out = capsys.readouterr().out
    paths = sorted((tmp_path / "runs").glob("classifier/*/result.json"))
    results = [read_result(path) for path in paths]
    assert sorted(result.seeds["order"] for result in results) == [0, 1] and "start" not in results[0].seeds
    assert sorted(result.config["seed"] for result in results) == [0, 1]
    assert "over 2 seeds, which vary: order of the samples, shuffled labels" in out
    assert out.count("result: ") == 2 and ("± 0" in out or "no ±: all seeds give one value" in out)
    before = [path.stat().st_mtime_ns for path in paths]
    paths[0].unlink()
    assert main(command) == 0
    assert capsys.readouterr().out.count("finished before, kept") == 1
    assert paths[0].exists() and paths[1].stat().st_mtime_ns == before[1]


def test_check_validates_and_writes_nothing(settings, tmp_path, capsys):
    assert main(["train", *settings, "--check"]) == 0
    assert "run folder: " in capsys.readouterr().out
    assert main(["train", *settings, "probe.params.controls=[x]", "--check"]) == 2
    assert "control 'x'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("experiment", "verb"),
    [("demo", "demo"), ("evaluate", "eval backbone BACKBONE"), ("evaluate_sae", "eval sae RUN_FOLDER")],
)
@pytest.mark.parametrize("check", [["--check"], []])
def test_an_experiment_of_another_kind_names_its_verb(experiment, verb, check, capsys):
    assert main(["train", f"experiment=emoji/{experiment}", *check]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"ConfigError: experiment 'emoji/{experiment}' is of kind")
    assert f"fix: diffprobe {verb} experiment=emoji/{experiment}\n" in err


def test_the_shipped_weights_have_a_name_and_others_are_looked_for_by_the_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["train", "--check", "experiment=emoji/train_denoiser"]
    assert main(command) == 0
    assert main([*command, "init_from=emoji-sd"]) == 0
    for key in ("autoencoder", "text_encoder", "init_from"):
        capsys.readouterr()
        assert main([*command, "text_encoder=null", f"{key}=gone"]) == 2
        assert "WeightsMissing: " in (err := capsys.readouterr().err) and "'gone'" in err
    assert not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_one_line(settings, capsys):
    assert main(["train", *settings, "features.source=live", "output=/proc/x"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("FileNotFoundError: ") and "'/proc/x" in err and "Traceback" not in err


def test_without_a_store_the_command_that_makes_it_is_printed(settings, capsys):
    assert main(["train", *settings]) == 2
    assert "diffprobe extract" in capsys.readouterr().err


def test_a_backbone_is_trained_by_the_same_verb(tiny_shards, tmp_path, capfd):
    settings = [
        "experiment=emoji/train_autoencoder",
        f"data.path={tiny_shards}",
        "data.batch_size=8",
        "model={resolution: 16, channels: [8, 8], latent_channels: 2, norm_groups: 4}",
        "trainer.max_steps=1",
        "trainer.enable_progress_bar=false",
        f"output={tmp_path}",
    ]
    assert main(["train", *settings, "--check"]) == 0
    out = capfd.readouterr().out
    assert "run folder: " in out and not list(tmp_path.iterdir())
    folder = out.strip().rpartition(" ")[2]
    assert main(["train", *settings]) == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == f"result: {folder}/result.json"
    assert (tmp_path / "emoji").is_dir() and "Warning" not in err and "GPU available" not in err


def test_a_ladder_names_its_rungs_and_those_that_are_left_out(settings, tmp_path, capsys):
    assert main(["train", *settings, "probe=topk", "probe.targets=[]", "control=ladder", "--check"]) == 0
    out = capsys.readouterr().out
    assert out.count(": left out, ") == 3 and out.count(str(tmp_path / "runs" / "sae")) == 2
    for name in ("random_weights", "none (the run itself)"):
        assert f"\nladder {name}: {tmp_path}" in out
    for name in ("raw_pixels", "vae_latents", "text_encoder"):
        assert f"ladder {name}: left out, " in out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*far from convergence")
def test_a_ladder_extracts_and_trains_every_rung(settings, tmp_path, capsys):
    rungs = ["raw_pixels", "vae_latents", "random_weights", "text_encoder", "none (the run itself)"]
    command = [*settings, "control=ladder"]
    assert main(["extract", *command, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert sorted(out.split()) == sorted(map(str, (tmp_path / "stores").iterdir())) and not err
    assert main(["extract", *command]) == 0
    assert [f"ladder {name}:" in capsys.readouterr().err for name in rungs[:1]] == [True]
    assert main(["train", *command]) == 0
    out = capsys.readouterr().out
    results = {path: read_result(path) for path in (tmp_path / "runs").glob("classifier/*/result.json")}
    assert len(results) == 5 and all(f"ladder {name}: {tmp_path}" in out for name in rungs)
    (itself,) = [path for path, result in results.items() if result.config["control"] == "none"]
    assert out.rstrip().endswith(f"diffprobe table {itself.parent.parent}")
    before = {path: path.stat().st_mtime_ns for path in results}
    itself.unlink()
    assert main(["train", *command]) == 0
    assert capsys.readouterr().out.count("finished before, kept") == 4
    assert itself.exists() and all(path.stat().st_mtime_ns == before[path] for path in results if path != itself)
    assert main(["table", str(itself.parent.parent)]) == 0
    assert "| raw pixels | VAE latents | random weights | text encoder |" in capsys.readouterr().out
