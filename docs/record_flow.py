"""Record what raw and modulated taps of a flow model read, for docs/users/flow.md:

    python docs/record_flow.py RUN_FOLDER

RUN_FOLDER is a finished run of scenes_flow/readouts. All cells go to docs/results/scenes-flow/readouts.csv, those of
one timestep as Markdown into the page, below its marker.
"""

import argparse
import csv
import statistics
from pathlib import Path
from typing import Any

from diffprobe.runs.rescore import Bootstrap, compare, load_run, rescore

DOCS = Path(__file__).resolve().parent
RESULT = DOCS / "results" / "scenes-flow" / "readouts.csv"
PAGE = DOCS / "users" / "flow.md"
MARKER = "<!-- table: readouts -->\n"
SHOWN = 200
"""Timestep of the table on the page."""
MODULATED = "/modulated"


def differences(folder: Path) -> list[dict[str, Any]]:
    """Return one row per target, block and timestep: accuracy raw and modulated, and the paired difference."""
    run = load_run(folder, "test")
    cells = [record for record in rescore(run, metrics=["accuracy"]) if MODULATED in record.cell]
    rows = []
    for record in cells:
        tap, _, timestep = record.cell.partition(":")[0].partition("@t")
        at = {"target": record.target, "timestep": timestep}
        raw = tap.removesuffix(MODULATED)
        (record,) = compare(
            run, run, metrics=["accuracy"], where={**at, "tap": tap}, other_where={**at, "tap": raw},
            bootstrap=Bootstrap(),
        )  # fmt: skip
        modulated, plain = record.detail["difference"]
        low, high = record.detail["interval"]
        rows.append({
            "target": record.target, "timestep": timestep, "tap": raw, "n": record.n, "raw": plain,
            "modulated": modulated, "difference": record.value, "low": low, "high": high,
        })  # fmt: skip
    return rows


def targets(rows: list[dict[str, Any]]) -> list[str]:
    """Return the targets in their order."""
    return list(dict.fromkeys(row["target"] for row in rows))


def lines(rows: list[dict[str, Any]]) -> list[str]:
    """Return the Markdown table of one timestep: a row per block, a column per target."""
    named = targets(rows)
    head = ["| block | " + " | ".join(named) + " |", "| :-- |" + " :-- |" * len(named)]
    body = []
    for tap in dict.fromkeys(row["tap"] for row in rows):
        own = {row["target"]: row for row in rows if row["tap"] == tap and int(row["timestep"]) == SHOWN}
        body.append(f"| `{tap}` | " + " | ".join(cell(own[target]) for target in named) + " |")
    return head + body


def counts(rows: list[dict[str, Any]]) -> str:
    """Return the sentence that counts the intervals on each side of 0."""
    better = sum(float(row["low"]) > 0 for row in rows)
    worse = sum(float(row["high"]) < 0 for row in rows)
    return (
        f"Of {len(rows)} paired differences (factors, blocks and timesteps), {better} lie above 0 with "
        f"their whole interval and {worse} below."
    )


def mean_line(rows: list[dict[str, Any]], target: str) -> str:
    """Return the mean accuracies of one target over all blocks and timesteps, raw and modulated, in %."""
    raw, modulated = (
        100 * statistics.mean(float(row[name]) for row in rows if row["target"] == target)
        for name in ("raw", "modulated")
    )
    return f"{target} {raw:.1f} raw and {modulated:.1f} modulated"


def cell(row: dict[str, Any]) -> str:
    """Return raw accuracy and paired difference of a row, in %."""
    raw, *difference = (100 * float(row[name]) for name in ("raw", "difference", "low", "high"))
    return "{:.1f}, {:+.1f} [{:.1f}, {:.1f}]".format(raw, *difference)


def main() -> None:
    """Write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    rows = differences(parser.parse_args().run)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with RESULT.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    before, _, after = PAGE.read_text("utf-8").partition(MARKER)
    print(counts(rows), *(mean_line(rows, target) for target in targets(rows)), sep="\n")
    PAGE.write_text(before + MARKER + "\n".join(lines(rows)) + "\n\n" + after.partition("\n\n")[2], "utf-8")


if __name__ == "__main__":
    main()
