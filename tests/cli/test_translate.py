"""`diffprobe translate`; what it computes is tested in tests/evaluation/test_caption_direction.py."""

import pytest
import torch

from diffprobe.cli.main import main
from diffprobe.evaluation import caption_direction
from diffprobe.probes.direction import Direction

GIVEN = ["positive=a red heart", "negative=a blue heart"]


def test_it_prints_the_folder_and_the_cosines(tmp_path, capsys, monkeypatch):
    made = Direction(
        vector=torch.ones(4) / 2, scale=2.5, midpoint=0.0, target="caption", positive="a red heart",
        negative="a blue heart", cell="mid_block@t10:empty:mean", estimator="caption_regression",
    )  # fmt: skip
    found = caption_direction.CaptionDirection(direction=made, folder=tmp_path / "made", cosines={"labelled": 0.75})
    monkeypatch.setattr(caption_direction, "caption_direction", lambda folder, config: found)
    assert main(["translate", "somewhere", *GIVEN]) == 0
    shown = capsys.readouterr().out
    assert "+ a red heart" in shown and "2.5" in shown and "cosine +0.750 with labelled" in shown
    assert "0.500" in shown and str(tmp_path / "made") in shown


def test_a_check_loads_nothing_and_wrong_settings_are_refused(capsys):
    assert main(["translate", "missing", *GIVEN, "--check"]) == 0
    for words, fact in ((GIVEN[:1], "both ends"), ([*GIVEN, "contexs=[a]"], "contexs")):
        assert main(["translate", "missing", *words]) == 2
        assert fact in capsys.readouterr().err
    assert main(["translate", "missing", *GIVEN]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["translate"])
