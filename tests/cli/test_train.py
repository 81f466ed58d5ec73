"""`diffprobe train`, through the door of the command line."""

import pytest

from diffprobe.cli.main import main


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


def test_extract_then_train(settings, tmp_path, capsys):
    assert main(["extract", *settings, "--quiet"]) == 0
    capsys.readouterr()
    assert main(["train", *settings]) == 0
    out, err = capsys.readouterr()
    (result,) = (tmp_path / "runs").glob("classifier/*/result.json")
    assert f"result: {result}" in out and "test accuracy = " in out and "shuffled_labels" in out
    assert "GPU available" not in err and "Warning" not in err


def test_check_judges_and_writes_nothing(settings, tmp_path, capsys):
    assert main(["train", *settings, "--check"]) == 0
    assert "the configuration is fine" in capsys.readouterr().out
    assert main(["train", *settings, "probe.params.controls=[x]", "--check"]) == 2
    assert "cannot train the control 'x'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("experiment", "verb"),
    [("demo", "demo"), ("evaluate", "eval backbone BACKBONE"), ("evaluate_sae", "eval sae RUN_FOLDER")],
)
@pytest.mark.parametrize("check", [["--check"], []])
def test_what_describes_no_training_is_sent_to_its_verb(experiment, verb, check, capsys):
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
    assert "the configuration is fine" in out and not list(tmp_path.iterdir())
    folder = out.strip().rpartition(" ")[2]
    assert main(["train", *settings]) == 0
    out, err = capfd.readouterr()
    assert out == f"result: {folder}/result.json\n"
    assert (tmp_path / "emoji").is_dir() and "Warning" not in err and "GPU available" not in err
