"""The table of classifiers in docs/benchmarks.md is that of the recorded measurement."""

import json

from diffprobe.benchmarks.heads import HeadsReport, render
from tests.docs.markdown import ROOT


def test_the_table_is_that_of_the_recorded_measurement() -> None:
    found = json.loads((ROOT / "docs/results/emoji-sd/bench_heads.json").read_text("utf-8"))
    derived = {"one_by_one_s", "speed_up", "cpu_speed_up"}
    report = HeadsReport(**{name: value for name, value in found.items() if name not in derived})
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    rows = [line for line in render(report).splitlines() if line.startswith("|")]
    assert len(rows) == 5 and all(row in text for row in rows)
    assert found["largest_difference"] == 0 and f"experiment={found['experiment']}" in text
