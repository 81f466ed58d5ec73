"""The table and the statements of docs/users/flow.md are those of the recorded run."""

import csv
from typing import Any

import pytest

from diffprobe.config.compose import load_run
from tests.docs.markdown import ROOT
from tests.docs.test_numbers import script

PAGE = (ROOT / "docs/users/flow.md").read_text("utf-8")
TEXT = " ".join(PAGE.split())
SCRIPT = script("record_flow")
with SCRIPT.RESULT.open(encoding="utf-8", newline="") as _file:
    ROWS: list[dict[str, Any]] = list(csv.DictReader(_file))


def test_the_table_is_the_recorded_one() -> None:
    block = PAGE.partition(SCRIPT.MARKER)[2].partition("\n\n")[0]
    assert block.splitlines() == SCRIPT.lines(ROWS)


def test_the_counts_are_those_of_the_recorded_run() -> None:
    assert SCRIPT.counts(ROWS) in TEXT
    for target in SCRIPT.targets(ROWS):
        assert SCRIPT.mean_line(ROWS, target) in TEXT


def test_a_difference_lies_in_its_interval_and_is_that_of_both_accuracies() -> None:
    for row in ROWS:
        raw, modulated, value, low, high = (
            float(row[name]) for name in ("raw", "modulated", "difference", "low", "high")
        )
        assert modulated - raw == pytest.approx(value, abs=1e-9) and low <= value <= high


def test_the_recorded_cells_are_those_of_the_experiment() -> None:
    config = load_run("scenes_flow/readouts")
    blocks = list(dict.fromkeys(row["tap"] for row in ROWS))
    assert blocks == [f"transformer_blocks.{index}" for index in range(len(blocks))]
    assert SCRIPT.targets(ROWS) == list(config.probe.targets)
    assert {int(row["timestep"]) for row in ROWS} == set(config.features.timesteps)
    assert len(ROWS) == len(blocks) * len(config.probe.targets) * len(config.features.timesteps)
    assert list(config.features.taps) == ["transformer_blocks.*", f"transformer_blocks.*{SCRIPT.MODULATED}"]
