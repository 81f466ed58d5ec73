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
TABLE, COUNTS = "emergence", "emergence-counts"
"""Names of the markers above the tables."""


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


def counts_lines(probes: Sequence[dict[str, Any]]) -> list[str]:
    """Return the Markdown table by attribute: means over cells, and in how many cells an interval excludes 0."""
    first, last = (probes[0]["steps"][i] for i in (0, -1))
    lines = [
        f"| attribute | step {first}, mean | step {last}, mean | risen | fallen "
        "| above raw pixels | below raw pixels |",
        "| :-- | --: | --: | --: | --: | --: | --: |",
    ]
    for target in dict.fromkeys(probe["target"] for probe in probes):
        found = [probe for probe in probes if probe["target"] == target]
        means = [f"{statistics.mean(probe['curve'][i] for probe in found):.2f}" for i in (0, -1)]
        counts = []
        for intervals in ([one["rise"][-1] for one in found], [one["differences"]["raw_pixels"] for one in found]):
            counts += [sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)]
        lines.append(
            f"| {target} | {means[0]} | {means[1]} | " + " | ".join(f"{n} of {len(found)}" for n in counts) + " |"
        )
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the record and the table."""
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the run")
    found = probes_of(parser.parse_args(arguments).run)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    page = with_table(PAGE.read_text("utf-8"), TABLE, table_lines(found["probes"]))
    PAGE.write_text(with_table(page, COUNTS, counts_lines(found["probes"])), encoding="utf-8")


if __name__ == "__main__":
    main()
