"""`diffprobe steer`; what it computes is tested in tests/evaluation/test_steer.py."""

import pytest

from diffprobe.analysis.dose_response import Dose
from diffprobe.analysis.statistics import Interval
from diffprobe.cli.main import main
from diffprobe.evaluation import steer

GIVEN = ["generator=missing", "store=missing", "prompts=[a, b]"]


def test_it_prints_each_strength(tmp_path, capsys, monkeypatch):
    interval = Interval(estimate=1.5, low=1.0, high=2.0, level=0.95, n_clusters=2, n_resamples=9, n_undefined=0)
    dose = Dose(strength=2.0, moved={"steered": interval, "colour": -0.25}, distance=1.25)
    found = steer.Steered(doses={"steered": (dose,), "random 1": (dose,)}, notes=("a note",))
    monkeypatch.setattr(steer, "steer", lambda folder, config, output: (found, tmp_path / "result.json"))
    assert main(["steer", "somewhere", *GIVEN]) == 0
    shown = capsys.readouterr().out
    assert "moved along colour" in shown and "+1.50 [+1.00, +2.00]" in shown and "-0.25" in shown and "1.25" in shown
    assert "random 1" in shown and "note: a note" in shown and "grid.png" in shown


def test_a_check_loads_nothing_and_wrong_settings_are_refused(capsys):
    assert main(["steer", "missing", *GIVEN, "--check"]) == 0
    for words, fact in (([*GIVEN, "strenghts=[1]"], "strenghts"), (GIVEN[:2], "0 prompts"), (GIVEN[1:], "generator")):
        assert main(["steer", "missing", *words]) == 2
        assert fact in capsys.readouterr().err
    assert main(["steer", "missing", *GIVEN]) == 2
    with pytest.raises(SystemExit, match="2"):
        main(["steer"])
