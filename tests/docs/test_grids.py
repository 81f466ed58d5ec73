"""The tables of docs/grids.md are those of the recorded CSV files, number by number and mark by mark."""

import csv
import json
import re

import pytest

from tests.docs.markdown import ROOT

PAGE = (ROOT / "docs/grids.md").read_text("utf-8")
NAMES = re.findall(r"<!-- table: (\S+) -->", PAGE)


def shown(name: str) -> list[list[str]]:
    """Return the rows of a table of the page."""
    block = PAGE.partition(f"<!-- table: {name} -->\n")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in block.splitlines()[2:]]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_the_recorded_one(name: str) -> None:
    path = ROOT / f"docs/results/grids/{name.replace('/', '-')}"
    with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        recorded = list(csv.DictReader(file))
    expected = [f"{100 * float(row['value']):.1f}{' ‡' * (row['below_control'] == 'True')}" for row in recorded]
    table = shown(name)
    columns = len(recorded) // len(table)
    first = next(i for i, cell in enumerate(table[0]) if re.fullmatch(r"[*\d.]+( ‡)?", cell))
    found = [cell.replace("*", "") for row in table for cell in row[first : first + columns]]
    assert found == expected and all(row["status"] == "measured" for row in recorded)
    notes = PAGE.partition(f"<!-- notes: {name} -->\n")[2].partition("\n\n")[0].splitlines()
    assert notes == json.loads(path.with_suffix(".json").read_text("utf-8")) and notes
