"""The table of prompt latents in docs/benchmarks.md is that of the recorded measurement."""

import json

from tests.docs.markdown import ROOT


def test_the_table_is_that_of_the_recorded_measurement() -> None:
    found = json.loads((ROOT / "docs/results/emoji-sd/bench_prompts.json").read_text("utf-8"))
    setting = found["setting"]
    command = (
        f"diffprobe bench prompts --prompts {setting['prompts']} --seeds {setting['seeds']} --steps {setting['steps']}"
    )
    rates = [found["passes"] / found[name] for name in ("ours_s", "bare_s")]
    row = f"| {found['passes']:,} | {rates[0]:.1f} | {rates[1]:.1f} | {rates[0] / rates[1]:.2f} |"
    text = (ROOT / "docs/benchmarks.md").read_text("utf-8")
    assert command in text and row in text
    assert setting["guidance"] == 0 and found["passes"] == setting["prompts"] * setting["seeds"] * setting["steps"]
