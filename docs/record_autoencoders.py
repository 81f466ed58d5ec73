"""Record the autoencoders of emoji-sd for the documentation: python docs/record_autoencoders.py RUNS, the folder of the
runs of experiments/emoji/sae_table.

The tables as CSV go to docs/results/emoji-sd/sae_table.csv, the first of them, of fvu, into docs/benchmarks.md below
its marker.
"""

import argparse
import sys
from itertools import takewhile
from pathlib import Path

from diffprobe.runs.tables import build_table

DOCS = Path(__file__).resolve().parent
CSV_FILE = DOCS / "results" / "emoji-sd" / "sae_table.csv"
NAME = "emoji/sae_table"


def record(runs: Path) -> None:
    """Write the table of a folder of runs."""
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    table = build_table(NAME, runs)
    CSV_FILE.write_text(table.render("csv"), encoding="utf-8")
    lines = table.render("markdown").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("|"))
    shown = list(takewhile(lambda line: line.startswith("|"), lines[first:]))
    page = DOCS / "benchmarks.md"
    page.write_text(with_table(page.read_text("utf-8"), NAME, shown), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the runs, for example runs")
    record(parser.parse_args().runs)
