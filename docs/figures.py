"""Draw the figure of the front page and the README from the demo's recorded results: python docs/figures.py."""

from pathlib import Path

from diffprobe.report.figure import render_heat_map
from diffprobe.report.table import build_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "demo"
FIGURE = DOCS / "demo-group-accuracy.png"


def draw() -> bytes:
    """Draw the classifiers' scores for the 8 groups, by layer and timestep, with the levels of their controls."""
    (table,) = build_table("emoji", RESULTS).parts
    return render_heat_map(table, [row for row in table.rows if row.values[0] == "group"], format="png")


if __name__ == "__main__":
    FIGURE.write_bytes(draw())
    print(f"{FIGURE.relative_to(DOCS.parent)}: {FIGURE.stat().st_size / 1000:.0f} kB")
