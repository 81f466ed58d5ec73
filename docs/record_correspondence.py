"""Record `diffprobe eval correspondence` on scenes-sd: python docs/record_correspondence.py RUNS, the folder of runs.

The result files go to docs/results/scenes-sd/correspondence, and a row for each run into docs/users/correspondence.md.
"""

import argparse
import shutil
from pathlib import Path

from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, read_result

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "scenes-sd" / "correspondence"
PAGE = DOCS / "users" / "correspondence.md"
START, END = "<!-- correspondence:start -->\n", "<!-- correspondence:end -->\n"
METRIC = "pck@0.1_per_point_box"
RUNS = {
    "other_role": "images of different roles",
    "same_role": "images of one role",
    "mirrored": "different roles, target mirrored",
}
"""Name of a file -> what is paired."""
CONTROLS = ("pixels", "vae_latents", "random_weights", "same_place", "chance")
POINTS = ("head", "hat_tip", "left_foot", "right_foot", "free_hand", "tool_grip", "tool_end")


def name_of(result: RunResult) -> str:
    """Return the name of the file of a run."""
    if result.config["mirror"]:
        return "mirrored"
    return "same_role" if result.config["same"] else "other_role"


def chosen(result: RunResult) -> MetricRecord:
    """Return the record of the chosen cell on test."""
    (found,) = [record for record in result.metrics if record.split == "test" and record.name == METRIC]
    return found


def lines_of(results: dict[str, RunResult]) -> list[str]:
    """Return both tables of the page."""
    head = ["pairs", "cell", "PCK", *(name.replace("_", " ") for name in CONTROLS), "above the best control"]
    table, by_point = [head, ["---"] * len(head)], [["pairs", *POINTS], ["---"] * (len(POINTS) + 1)]
    for name, what in RUNS.items():
        record = chosen(results[name])
        low, high = record.detail["interval"]
        best = max(record.detail["differences"], key=lambda control: record.controls[control])
        value, least, most = record.detail["differences"][best]
        cell = (record.cell or "").replace(":empty:none", "")
        numbers = [f"{100 * record.controls[control]:.1f}" for control in CONTROLS]
        above = f"{100 * value:+.1f} [{100 * least:.1f}, {100 * most:.1f}]"
        table.append(
            [what, f"`{cell}`", f"**{100 * record.value:.1f}** [{100 * low:.1f}, {100 * high:.1f}]", *numbers, above]
        )
        by_point.append([what, *(f"{100 * record.detail['by_point'][point]:.0f}" for point in POINTS)])
    return [*map(_line, table), "", "By point:", "", *map(_line, by_point)]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def record(runs: Path) -> None:
    """Copy the results, and write the tables into the page."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = {}
    for path in sorted(runs.rglob(RESULT_FILE)):
        result = read_result(path)
        if result.kind == "correspondence":
            results[name_of(result)] = result
            shutil.copyfile(path, RESULTS / f"{name_of(result)}.json")
    before, _, rest = PAGE.read_text("utf-8").partition(START)
    text = "\n".join(lines_of(results))
    PAGE.write_text(f"{before}{START}\n{text}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the runs, for example runs")
    record(parser.parse_args().runs)
