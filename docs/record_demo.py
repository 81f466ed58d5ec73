"""Record the demo for the documentation: python docs/record_demo.py RUNS, the folder that `diffprobe demo` wrote.

Result files and tables as CSV go to docs/results/demo, the tables as Markdown into README.md and docs/benchmarks.md,
each below its marker, and the figures are drawn again. Predictions are too large to keep, so the marks of the tables
are in the CSV alone.
"""

import argparse
import shutil
import sys
from pathlib import Path

from diffprobe.core.result import RESULT_FILE
from diffprobe.runs.tables import build_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "demo"
TABLES = ("emoji", "emoji/use", "emoji/directions")
PAGES = (DOCS.parent / "README.md", DOCS / "benchmarks.md")


def csv_file(name: str) -> Path:
    """Return the file of a table as CSV."""
    return RESULTS / f"{name.replace('/', '-')}.csv"


def with_table(text: str, name: str, lines: list[str]) -> str:
    """Replace the table below the marker of its name; a page without the marker stays as it is."""
    before, marker, after = text.partition(f"<!-- table: {name} -->\n")
    if not marker:
        return text
    rest = after.splitlines(keepends=True)
    while rest and rest[0].startswith("|"):
        rest.pop(0)
    return before + marker + "".join(f"{line}\n" for line in lines) + "".join(rest)


def record(runs: Path) -> None:
    """Copy the results of a demo, and write its tables into the pages."""
    shutil.rmtree(RESULTS, ignore_errors=True)
    for path in sorted(runs.rglob(RESULT_FILE)):
        copy = RESULTS / path.relative_to(runs)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    for name in TABLES:
        table = build_table(name, runs)
        csv_file(name).write_text(table.render("csv"), encoding="utf-8")
        lines = [line for line in table.render("markdown").splitlines() if line.startswith("|")]
        for page in PAGES:
            page.write_text(with_table(page.read_text("utf-8"), name, lines), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the demo, for example runs/demo")
    runs = parser.parse_args().runs
    record(runs)
    sys.path.insert(0, str(DOCS))
    import figures

    figures.main(runs)
