import pytest

from diffprobe.cli.main import main
from diffprobe.runs import doctor
from diffprobe.runs.doctor import Finding


def test_the_status_is_1_if_something_stops_and_0_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = [Finding("device", "cpu"), Finding("wandb", "not logged in", fix="wandb login")]
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "device  cpu" in out and "fix: wandb login" in out and out.endswith("nothing here stops diffprobe\n")
    found.append(Finding("folder", "output cannot be written", stops=True, fix="output=FOLDER"))
    assert main(["doctor"]) == 1
    assert "STOPS  output cannot be written" in capsys.readouterr().out
