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


def test_the_text_on_photographs_is_that_of_the_notes() -> None:
    notes = json.loads((ROOT / "docs/results/grids/caltech101-layers.json").read_text("utf-8"))
    above, below = (
        re.search(r"difference ([+-][\d.]+)", next(note for note in notes if f"Chosen on val for {model}" in note))
        for model in ("emoji-sd", "scenes-sd")
    )
    assert above and below
    assert f"emoji-sd is {above[1][1:]} points above its strongest control, and scenes-sd {below[1][1:]} below" in PAGE
    assert above[1][0] == "+" and below[1][0] == "-"
