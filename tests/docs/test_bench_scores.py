"""The table of scores in docs/benchmarks.md is that of the recorded measurement."""

import json

import pytest

from diffprobe.benchmarks.scores import ScoreReport, ScoreSetting, ScoreSide, render
from diffprobe.probes.score.staged_errors import Stage
from tests.docs.markdown import ROOT

DERIVED = ("share", "saved_passes", "saved_time", "changed_bound")


@pytest.mark.parametrize("model", ["emoji-sd", "scenes-sd"])
def test_the_table_is_that_of_the_recorded_measurement(model: str) -> None:
    found = json.loads((ROOT / f"docs/results/{model}/bench_scores.json").read_text("utf-8"))
    setting = found.pop("setting")
    stages = tuple(Stage(**stage) for stage in setting.pop("stages"))
    sides = {name: ScoreSide(**found.pop(name)) for name in ("ours", "pruned", "baseline", "bare")}
    derived = {name: found.pop(name) for name in DERIVED}
    report = ScoreReport(setting=ScoreSetting(stages=stages, **setting), **sides, **found)
    assert all(getattr(report, name) == value for name, value in derived.items())
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    rows = [line for line in render(report).splitlines() if line.startswith("|")]
    assert len(rows) == 6 and all(row in text for row in rows)
    assert render(report).splitlines()[-1] in text
    given = {"emoji-sd": "--images 40", "scenes-sd": "--backbone scenes-sd --data data/scenes"}[model]
    assert f"diffprobe bench scores {given} --json" in text
