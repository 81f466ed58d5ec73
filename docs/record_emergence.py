"""Record what emerges when for the documentation: python docs/record_emergence.py RUN_FOLDER, of scenes/emergence.

The probes of its result go to docs/results/emergence.json and as a table into docs/users/emergence.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffprobe.core.result import RESULT_FILE, read_result

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "emergence.json"
PAGE = DOCS / "users" / "emergence.md"
TABLE = "emergence"
"""Name of the marker above the table."""


def probes_of(folder: Path) -> dict[str, Any]:
    """Return the probes of a run, with its settings."""
    result = read_result(folder / RESULT_FILE)
    found = [
        {"cell": record.cell, "target": record.target, "n": record.n, "controls": record.controls, **record.detail}
        for record in result.metrics
        if record.probe == "ridge"
    ]
    config = {key: value for key, value in result.config.items() if key != "output"}
    return {"git_commit": result.git_commit, "seeds": result.seeds, "config": config, "probes": found}


def table_lines(probes: Sequence[dict[str, Any]]) -> list[str]:
    """Return the Markdown table: a row per attribute and cell, a column per measured step, then the controls."""
    steps = probes[0]["steps"]
    heading = ["attribute", "cell", *(f"step {step}" for step in steps), "raw pixels", "chance"]
    lines = ["| " + " | ".join(heading) + " |", "| :-- | :-- |" + " --: |" * (len(heading) - 2)]
    for target in dict.fromkeys(probe["target"] for probe in probes):
        for probe in (probe for probe in probes if probe["target"] == target):
            numbers = [*probe["curve"], probe["controls"]["raw_pixels"], probe["controls"]["chance"]]
            cell = probe["cell"].partition(":")[0]
            lines.append(f"| {target} | `{cell}` | " + " | ".join(f"{number:.2f}" for number in numbers) + " |")
    return lines


def means_line(probes: Sequence[dict[str, Any]]) -> str:
    """Return the accuracy of each attribute at the first and the last step, as the mean over the cells."""
    parts = []
    for target in dict.fromkeys(probe["target"] for probe in probes):
        curves = [probe["curve"] for probe in probes if probe["target"] == target]
        first, last = (statistics.mean(curve[i] for curve in curves) for i in (0, -1))
        parts.append(f"{target} {first:.2f} to {last:.2f}")
    return f"Means over the cells, from step 0 to step {probes[0]['steps'][-1]}: {', '.join(parts)}."


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the record and the table."""
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    found = probes_of(parser.parse_args(arguments).run)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), TABLE, table_lines(found["probes"])), encoding="utf-8")


if __name__ == "__main__":
    main()
