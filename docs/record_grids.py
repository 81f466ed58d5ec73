"""Record the full grids for the documentation: python docs/record_grids.py RUNS, the folder that `diffprobe run` of
emoji/grid, scenes/grid and caltech101/layers wrote.

Each table goes as CSV to docs/results/grids, its notes as JSON beside it, and both as Markdown into docs/grids.md,
below the marker of the table.
"""

import argparse
import json
import sys
from pathlib import Path

from diffprobe.runs.tables import build_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "grids"
PAGE = DOCS / "grids.md"
TABLES = ("emoji/grid", "scenes/grid", "caltech101/layers")


def file_of(name: str, suffix: str) -> Path:
    """Return the file of a table: .csv or .json."""
    return RESULTS / f"{name.replace('/', '-')}{suffix}"


def parts_of(markdown: str) -> tuple[list[str], list[str]]:
    """Return the lines of a printed table, and its notes, one line each."""
    lines = markdown.splitlines()
    table = [line for line in lines if line.startswith("|")]
    notes: list[str] = []
    for line in lines:
        if line.startswith("- "):
            notes.append(line)
        elif notes and line.startswith("  "):
            notes[-1] += f" {line.strip()}"
    return table, notes


def record(runs: Path, names: list[str]) -> None:
    """Write the tables of a folder of runs."""
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        table = build_table(name, runs)
        file_of(name, ".csv").write_text(table.render("csv"), encoding="utf-8")
        lines, notes = parts_of(table.render("markdown"))
        file_of(name, ".json").write_text(json.dumps(notes, indent=1) + "\n", encoding="utf-8")
        text = with_table(PAGE.read_text("utf-8"), name, lines)
        before, marker, after = text.partition(f"<!-- notes: {name} -->\n")
        rest = after.splitlines(keepends=True)
        while rest and rest[0].startswith("- "):
            rest.pop(0)
        PAGE.write_text(before + marker + "".join(f"{note}\n" for note in notes) + "".join(rest), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the runs, for example runs")
    parser.add_argument("--table", choices=TABLES, action="append", help="one of the tables (default: all)")
    arguments = parser.parse_args()
    record(arguments.runs, arguments.table or list(TABLES))
