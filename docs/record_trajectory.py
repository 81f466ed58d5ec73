"""Record dictionaries over timesteps and transcoders for the documentation: python docs/record_trajectory.py RUNS, the
folder of the runs of emoji/trajectory, scenes/trajectory and emoji/transcoder, and of `diffprobe eval lifetimes`.

The tables go to docs/results/trajectory and as Markdown into docs/users/trajectory.md below their markers; the heat map
of one conditioned dictionary is drawn anew from its table of latents.
"""

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

import numpy as np

from diffprobe.core.result import RESULT_FILE, read_result
from diffprobe.evaluation.lifetimes import KIND, TABLE_FILE
from diffprobe.report.figure_file import save_figures
from diffprobe.report.lifetime_plot import lifetime_plot
from diffprobe.runs.tables import build_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "trajectory"
PAGE = DOCS / "users" / "trajectory.md"
FIGURE = DOCS / "emoji-sd-lifetimes.png"
TABLES = ("emoji/trajectory", "scenes/trajectory")
DRAWN = "emoji/trajectory/conditioned"
"""The experiment whose first seed is drawn."""
TRANSCODER = "emoji/transcoder"
"""The experiment of the table of transcoders."""
SPLITS = ("train", "val", "test")
COLUMNS = {
    "lifetime_fraction": "with a lifetime, %", "timesteps_alive": "timesteps alive",
    "single_timestep_fraction": "at one timestep, %", "lasting_fraction": "at all, %",
    "peak_agreement": "same peak on train, %", "chance": "by chance, %",
}  # fmt: skip
"""Number of a dictionary's latents -> heading."""


def lifetimes_of(runs: Path) -> list[dict[str, object]]:
    """Return the numbers of each result of `eval lifetimes`, by experiment and seed."""
    found = []
    for path in sorted(runs.rglob(RESULT_FILE)):
        result = read_result(path)
        if result.kind != KIND:
            continue
        values = {record.name: record.value for record in result.metrics}
        values |= {name: x for record in result.metrics for name, x in record.controls.items()}
        seed = result.config["seed"]
        found.append({"experiment": result.experiment, "seed": seed, "values": values, "table": str(path.parent)})
    return sorted(found, key=lambda one: (str(one["experiment"]), one["seed"]))


def lifetime_lines(found: list[dict[str, object]]) -> list[str]:
    """Return the Markdown table of the lifetimes: the mean over seeds of each experiment."""
    lines = ["| dictionary | seeds | " + " | ".join(COLUMNS.values()) + " |", "| :-- |" + " --: |" * (1 + len(COLUMNS))]
    for experiment in dict.fromkeys(one["experiment"] for one in found):
        own = [one["values"] for one in found if one["experiment"] == experiment]
        numbers = []
        for name in COLUMNS:
            mean = statistics.mean(values[name] for values in own)  # type: ignore[index]
            numbers.append(f"{mean:.2f}" if name == "timesteps_alive" else f"{100 * mean:.1f}")
        lines.append(f"| {experiment} | {len(own)} | " + " | ".join(numbers) + " |")
    return lines


def transcoders_of(runs: Path) -> list[dict[str, object]]:
    """Return fvu, that of the affine control and the share of dead latents of each transcoder by split, by seed."""
    found = []
    for path in sorted((runs / TRANSCODER).rglob(RESULT_FILE)):
        result = read_result(path)
        splits = {}
        for split in SPLITS:
            of = {record.name: record for record in result.metrics if record.split == split}
            fvu, dead = of["fvu"], of["dead_fraction"].value
            splits[split] = {"n": fvu.n, "fvu": fvu.value, "affine": fvu.controls["affine"], "dead_fraction": dead}
        params = {**result.config["probe"]["params"], "cell": result.config["probe"]["cell"]}
        found.append({"seed": result.config["seed"], "params": params, "splits": splits})
    return sorted(found, key=lambda one: one["seed"])


def transcoder_lines(found: list[dict[str, object]]) -> list[str]:
    """Return the Markdown table of the transcoders: a line per split, over seeds."""
    lines = ["| split | rows | fvu of the transcoder | fvu of `affine` | dead latents, % |", "| :-- |" + " --: |" * 4]
    for split in SPLITS:
        own = [one["splits"][split] for one in found]  # type: ignore[index]
        values = [one["fvu"] for one in own]
        dead = 100 * statistics.mean(one["dead_fraction"] for one in own)
        lines.append(
            f"| {split} | {own[0]['n']} | {statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} | "
            f"{own[0]['affine']:.3f} | {dead:.1f} |"
        )
    return lines


def draw(folder: Path) -> None:
    """Draw the heat map of a table of latents."""
    with (folder / TABLE_FILE).open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["peak"]]
    timesteps = [int(name.partition("@t")[2]) for name in rows[0] if name.startswith("strength@t")]
    rows.sort(key=lambda row: (-int(row["peak"]), -int(row["birth"]), -int(row["death"]), int(row["latent"])))
    strength = np.array([[float(row[f"strength@t{t}"]) for t in timesteps] for row in rows])
    title = "Latents of up_blocks.1 of emoji-sd, one conditioned dictionary"
    save_figures([lifetime_plot(strength, timesteps, title=title)], FIGURE)


def record(runs: Path, names: list[str]) -> None:
    """Write the tables of a folder of runs."""
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    RESULTS.mkdir(parents=True, exist_ok=True)
    text = PAGE.read_text("utf-8")
    for name in names:
        table = build_table(name, runs)
        (RESULTS / f"{name.partition('/')[0]}.csv").write_text(table.render("csv"), encoding="utf-8")
        lines = [line for line in table.render("markdown").splitlines() if line.startswith("|")]
        text = with_table(text, name, lines)
    found = lifetimes_of(runs)
    drawn = next((one for one in found if one["experiment"] == DRAWN and one["seed"] == 0), None)
    if drawn is not None:
        draw(Path(str(drawn["table"])))
    kept = [{key: value for key, value in one.items() if key != "table"} for one in found]
    (RESULTS / "lifetimes.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    text = with_table(text, "lifetimes", lifetime_lines(found))
    if transcoders := transcoders_of(runs):
        (RESULTS / "transcoder.json").write_text(json.dumps(transcoders, indent=1) + "\n", encoding="utf-8")
        text = with_table(text, "transcoder", transcoder_lines(transcoders))
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the runs, for example runs")
    parser.add_argument("names", nargs="*", default=list(TABLES), help=f"tables, by default {', '.join(TABLES)}")
    arguments = parser.parse_args()
    record(arguments.runs, arguments.names)
