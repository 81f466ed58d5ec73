import re

import pytest
import yaml

from diffprobe.cli.main import main


def test_a_list_of_seeds_prints_its_first_run(capsys):
    assert main(["config", "experiment=emoji/classifier", "seed=[3,5]"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# the first of 2 runs; seed: 3, 5\n") and "seed: 3\n" in out
    assert main(["config", "experiment=emoji/classifier", "seed=[3,3]"]) == 2


def test_the_resolved_config_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "experiment=emoji/classifier", "trainer.max_epochs=3"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["experiment"] == "emoji/classifier" and tree["trainer"]["max_epochs"] == 3


def test_an_unknown_key_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "trainer.max_epoch=3"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "nearest: trainer.max_epochs" in err


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("probe.params.kk=3", "unknown key 'probe.params.kk' on the command line"),
        ("probe.name=topkk", "unknown probe of kind 'sae' 'topkk'"),
        ("probe.grid.kk=[3]", "unknown key of probe.grid"),
    ],
)
def test_settings_that_the_probe_does_not_have_are_refused(
    setting: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "experiment=emoji/sae", setting]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err


def test_another_kind_than_a_probe_run_is_printed_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "experiment=emoji/demo"]) == 0
    assert "tables:" in capsys.readouterr().out


def test_choices_and_keys_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--list"]) == 0
    out = capsys.readouterr().out
    assert "  emoji/classifier\n" in out and re.search(
        r"^probe: .*knn, lda, linear, linear_cv, logistic, .*topk", out, re.MULTILINE
    )
    assert main(["config", "--keys"]) == 0
    assert "trainer.max_epochs: int = 10\n    Passes over the training split.\n" in capsys.readouterr().out


def test_of_a_ladder_the_run_itself_is_printed(capsys):
    assert main(["config", "experiment=emoji/classifier", "control=ladder", "seed=[3,5]"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# control=ladder: the run itself") and "# the first of 2 runs; seed: 3, 5" in out
    assert "control: none" in out
    assert main(["config", "experiment=emoji/sae_grid", "control=ladder"]) == 0  # cells that the pixels do not have
