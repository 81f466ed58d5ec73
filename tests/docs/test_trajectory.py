"""The tables and statements of docs/users/trajectory.md are those of the recorded results."""

import csv
import json
import re
import statistics

import pytest

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
