"""The table and the statements of docs/users/flow.md are those of the recorded run."""

import csv
from pathlib import Path
from typing import Any

import pytest

from diffprobe.config.compose import load_run
from tests.docs.markdown import ROOT
from tests.docs.test_numbers import script

PAGE = (ROOT / "docs/users/flow.md").read_text("utf-8")
TEXT = " ".join(PAGE.split())
SCRIPT = script("record_flow")


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


ROWS, CONTROLS = read(SCRIPT.RESULT), read(SCRIPT.CONTROLS)


def below(marker: str) -> list[str]:
    return PAGE.partition(marker)[2].partition("\n\n")[0].splitlines()


MEANS = below(SCRIPT.MEANS)


def test_the_tables_are_those_of_the_recorded_runs() -> None:
    assert below(SCRIPT.MARKER) == SCRIPT.lines(ROWS)
    assert MEANS == SCRIPT.means(ROWS, CONTROLS)


def test_the_statements_are_those_of_the_recorded_run() -> None:
    assert SCRIPT.counts(ROWS) in TEXT
    for target in ("side", "background"):
        assert min(float(row["raw"]) for row in ROWS if row["target"] == target) > 0.95
    of = {line.split(" | ")[0].strip("| "): list(map(float, line.strip("| ").split(" | ")[1:])) for line in MEANS[2:]}
    for _, _, random, random_modulated, *_ in of.values():
        assert random_modulated > random
    for target, (raw, _, random, _, pixels, latents) in of.items():
        assert raw > random and (raw - max(pixels, latents) > 20) == (target in ("texture", "background"))
    assert of["build"][0] < min(of["build"][4:])


def test_all_runs_classify_the_same_images() -> None:
    assert len({row["n"] for row in [*ROWS, *CONTROLS]}) == 1
    assert {row["control"] for row in CONTROLS} == {"random_weights", "raw_pixels", "vae_latents"}


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
