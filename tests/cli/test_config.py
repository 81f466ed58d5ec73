import re

import pytest
import yaml

from diffprobe.cli.main import main


def test_the_resolved_config_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "experiment=emoji/classifier", "trainer.max_epochs=3"]) == 0
    tree = yaml.safe_load(capsys.readouterr().out)
    assert tree["experiment"] == "emoji/classifier" and tree["trainer"]["max_epochs"] == 3


def test_an_unknown_key_prints_no_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "trainer.max_epoch=3"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "nearest: trainer.max_epochs" in err


def test_choices_and_keys_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "--list"]) == 0
    out = capsys.readouterr().out
    assert "  emoji/classifier\n" in out and re.search(r"^probe: .*linear, logistic, .*topk", out, re.MULTILINE)
    assert main(["config", "--keys"]) == 0
    assert "trainer.max_epochs: int = 10\n    Passes over the training split.\n" in capsys.readouterr().out
