"""Record what raw and modulated taps of a flow model read, for docs/users/flow.md:

    python docs/record_flow.py RUN_FOLDER --control random_weights=FOLDER raw_pixels=FOLDER vae_latents=FOLDER

Each folder is a finished run of scenes_flow/readouts, those of --control with that `control`. All cells go to
docs/results/scenes-flow, means and one timestep as Markdown into the page, below their markers.
"""

import argparse
import csv
import statistics
import sys
from pathlib import Path
from typing import Any

from diffprobe.runs.rescore import Bootstrap, compare, load_run, rescore

sys.path.insert(0, str(Path(__file__).resolve().parent))
from page_tables import with_table

DOCS = Path(__file__).resolve().parent
RESULT = DOCS / "results" / "scenes-flow" / "readouts.csv"
CONTROLS = RESULT.with_name("controls.csv")
PAGE = DOCS / "users" / "flow.md"
MARKER = "<!-- table: readouts -->\n"
MEANS = "<!-- table: means -->\n"
RANDOM = "random_weights"
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


def accuracies(folder: Path) -> list[dict[str, Any]]:
    """Return the accuracy on test of each cell and target of a finished run."""
    return [
        {"target": record.target, "cell": record.cell.partition(":")[0], "n": record.n, "accuracy": record.value}
        for record in rescore(load_run(folder, "test"), metrics=["accuracy"])
    ]


def means(rows: list[dict[str, Any]], controls: list[dict[str, Any]]) -> list[str]:
    """Return the Markdown table of accuracies in %, means over blocks and timesteps, and those of the controls."""
    names = list(dict.fromkeys(row["control"] for row in controls))
    columns = [(name, modulated) for name in names for modulated in ((False, True) if name == RANDOM else (False,))]
    titles = [name.replace("_", " ") + ", modulated" * modulated for name, modulated in columns]
    head = ["| factor | raw | modulated | " + " | ".join(titles) + " |", "| :-- |" + " --: |" * (2 + len(titles))]
    body = []
    for target in targets(rows):
        own = [[float(row[name]) for row in rows if row["target"] == target] for name in ("raw", "modulated")]
        own += [
            [
                float(row["accuracy"])
                for row in controls
                if (row["control"], row["target"]) == (name, target) and (MODULATED in row["cell"]) == modulated
            ]
            for name, modulated in columns
        ]
        body.append(f"| {target} | " + " | ".join(f"{100 * statistics.mean(values):.1f}" for values in own) + " |")
    return head + body


def cell(row: dict[str, Any]) -> str:
    """Return raw accuracy and paired difference of a row, in %."""
    raw, *difference = (100 * float(row[name]) for name in ("raw", "difference", "low", "high"))
    return "{:.1f}, {:+.1f} [{:.1f}, {:.1f}]".format(raw, *difference)


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def show(marker: str, table: list[str]) -> None:
    """Replace the table below a marker of the page."""
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), marker, table), "utf-8")


def main() -> None:
    """Write the results and the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--control", nargs="+", required=True, metavar="NAME=RUN_FOLDER")
    args = parser.parse_args()
    rows = differences(args.run)
    controls = [
        {"control": name, **row}
        for name, _, folder in (text.partition("=") for text in args.control)
        for row in accuracies(Path(folder))
    ]
    write(RESULT, rows)
    write(CONTROLS, controls)
    show(MARKER, lines(rows))
    show(MEANS, means(rows, controls))
    print(counts(rows))


if __name__ == "__main__":
    main()
