"""The tables and statements of docs/users/trajectory.md are those of the recorded results."""

import csv
import json
import re
import statistics

import pytest

from diffprobe.probes.sae.types import Config
from tests.docs.markdown import ROOT
from tests.docs.test_numbers import script

PAGE = (ROOT / "docs/users/trajectory.md").read_text("utf-8")
RESULTS = ROOT / "docs/results/trajectory"
NAMES = sorted(path.stem for path in RESULTS.glob("*.csv"))


def shown(name: str) -> list[list[str]]:
    """Return the rows of a table of the page."""
    block = PAGE.partition(f"<!-- table: {name} -->\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in block.splitlines()[2:]]


def recorded(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_the_recorded_one(name: str) -> None:
    rows, table = recorded(name), shown(f"{name}/trajectory")
    n_columns = len(rows) // len(table)
    found = [cell.replace("*", "").removesuffix(" ‡") for row in table for cell in row[1 : 1 + n_columns]]
    assert found and len(found) == len(rows)
    for cell, row in zip(found, rows, strict=True):
        is_there = row["status"] == "measured"
        assert cell.startswith(f"{float(row['value']):.3f}") if is_there else cell == "n/a", (cell, row)


def test_the_lifetimes_are_the_recorded_ones() -> None:
    script_of_table = script("record_trajectory")
    lines = script_of_table.lifetime_lines(json.loads((RESULTS / "lifetimes.json").read_text("utf-8")))
    assert "\n".join(lines) in PAGE


def test_the_transcoders_are_the_recorded_ones_and_the_text_has_their_numbers() -> None:
    found = json.loads((RESULTS / "transcoder.json").read_text("utf-8"))
    assert len(found) == 3
    assert "\n".join(script("record_trajectory").transcoder_lines(found)) in PAGE
    mean = {
        (split, key): statistics.mean(one["splits"][split][key] for one in found)
        for split in ("train", "test") for key in ("fvu", "affine")
    }  # fmt: skip
    text = " ".join(PAGE.split())
    assert f"leaves {mean['test', 'fvu']:.2f} of the variance" in text
    assert f"the affine map {mean['test', 'affine']:.2f}. Both are much better on train" in text
    assert f"({mean['train', 'fvu']:.2f} and {mean['train', 'affine']:.2f})" in text
    assert f"the difference of {mean['test', 'affine'] - mean['test', 'fvu']:.2f} to the affine map" in text
    assert f"with {found[0]['splits']['train']['n']:,} rows for training" in text
    assert all("adam_beta2" not in one["params"] for one in found) and Config.adam_beta2 == 0.95
    assert "transcoders had the default of 0.95" in text


def means(name: str) -> dict[str, float]:
    """Return the mean fvu over timesteps of each row."""
    found: dict[str, list[float]] = {}
    for row in (row for row in recorded(name) if row["status"] == "measured"):
        found.setdefault(row["experiment"].rpartition("/")[2], []).append(float(row["value"]))
    return {key: statistics.mean(values) for key, values in found.items()}


@pytest.mark.parametrize("name", NAMES)
def test_the_statement_of_means_is_that_of_the_table(name: str) -> None:
    stated = re.search(rf"Mean over timesteps on {name}-sd: ([^\n]*)", PAGE)
    assert stated
    found = {row: float(value) for row, value in re.findall(r"`(\w+)` ([\d.]+\d)", stated[1])}
    assert found == {row: round(value, 3) for row, value in means(name).items()}


def test_the_statement_of_differences_is_that_of_the_table() -> None:
    by_row: dict[str, list[tuple[float, float]]] = {}
    for row in recorded("emoji"):
        name = row["experiment"].rpartition("/")[2]
        if name in ("conditioned", "joint"):
            by_row.setdefault(name, []).append((float(row["value"]), float(row["spread"])))
    differences = [joint[0] - own[0] for own, joint in zip(by_row["conditioned"], by_row["joint"], strict=True)]
    assert len(differences) == 8 and min(differences) > 0
    largest = max(sd for row in by_row.values() for _, sd in row)
    assert f"by at most {max(differences):.3f}".replace("0.", ".") in PAGE
    assert f"over three seeds is up to {largest:.3f}".replace("0.", ".") in " ".join(PAGE.split())


def test_separate_dictionaries_are_worse_at_small_timesteps_and_better_at_the_largest() -> None:
    rows = recorded("emoji")
    value = {(row["experiment"].rpartition("/")[2], int(row["timestep"])): float(row["value"]) for row in rows}
    assert all(value["separate", t] > value["joint", t] for t in (0, 25, 50, 100, 200, 300))
    assert value["separate", 700] < value["conditioned", 700]
    assert "leave more at timesteps 0 to 300 and less at 700" in " ".join(PAGE.split())


def test_the_statements_about_scenes_are_those_of_the_table() -> None:
    value, pca, spreads = {}, {}, []
    for row in recorded("scenes"):
        at = (row["experiment"].rpartition("/")[2], int(row["timestep"]))
        value[at], pca[at] = float(row["value"]), float(row["control_pca"])
        spreads.append(float(row["spread"]))
    steps = sorted({t for _, t in value})
    gains = [value["joint", t] - value["conditioned", t] for t in steps]
    text = " ".join(PAGE.split())
    assert f"leaves {min(gains):.3f} to {max(gains):.3f} less unexplained".replace("0.", ".") in text
    assert f"is at most {max(spreads):.3f} in any row".replace("0.", ".") in text
    others = [value["separate", t] - value["conditioned", t] for t in steps]
    assert f"by at most {max(map(abs, others)):.3f}, in both directions".replace("0.", ".") in text
    assert min(others) < 0 < max(others) and len(steps) == 8
    assert all(value[at] > pca[at] for at in value)


def test_the_statements_about_lifetimes_are_the_recorded_ones() -> None:
    found: dict[str, list[dict[str, float]]] = {}
    for one in json.loads((RESULTS / "lifetimes.json").read_text("utf-8")):
        found.setdefault(one["experiment"], []).append(one["values"])
    assert all(len(of) == 3 for of in found.values()) and len(found) == 4
    mean = {
        (name, key): statistics.mean(one[key] for one in of)
        for name, of in found.items() for key in ("timesteps_alive", "lasting_fraction", "peak_agreement", "chance")
    }  # fmt: skip
    text, scenes = " ".join(PAGE.split()), ("scenes/trajectory/conditioned", "scenes/trajectory/joint")
    own, other = (mean[name, "timesteps_alive"] for name in scenes)
    assert f"alive at {own:.1f} timesteps in the mean and an unconditional one at {other:.1f}" in text
    own, other = (100 * mean[name, "lasting_fraction"] for name in scenes)
    assert f"{own:.0f} % of conditioned and {other:.0f} % of unconditional latents" in text
    assert all(0.45 < mean[name, "peak_agreement"] < 0.76 and 0.13 < mean[name, "chance"] < 0.18 for name in found)
