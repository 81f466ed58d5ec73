"""The table of scores in docs/benchmarks.md is that of the recorded measurement."""

import json

from diffprobe.benchmarks.scores import ScoreReport, ScoreSetting, ScoreSide, render
from diffprobe.probes.score.staged_errors import Stage
from tests.docs.markdown import ROOT


def test_the_table_is_that_of_the_recorded_measurement() -> None:
    found = json.loads((ROOT / "docs/results/emoji-sd/bench_scores.json").read_text("utf-8"))
    setting = found.pop("setting")
    stages = tuple(Stage(**stage) for stage in setting.pop("stages"))
    sides = {name: ScoreSide(**found.pop(name)) for name in ("ours", "pruned", "baseline", "bare")}
    derived = {name: found.pop(name) for name in ("share", "saved_passes", "saved_time")}
    report = ScoreReport(setting=ScoreSetting(stages=stages, **setting), **sides, **found)
    assert all(getattr(report, name) == value for name, value in derived.items())
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    rows = [line for line in render(report).splitlines() if line.startswith("|")]
    assert len(rows) == 6 and all(row in text for row in rows)
    assert f"diffprobe bench scores --images {setting['images']}" in text and render(report).splitlines()[-1] in text
