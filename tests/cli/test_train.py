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
    assert main(["train", *settings, "probe.params.nulls=[x]", "--check"]) == 2
    assert "can't train the null 'x'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


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
