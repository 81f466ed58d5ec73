"""Record `diffprobe eval concepts` on scenes-sd: python docs/record_concepts.py RUNS, the folder of runs.

The result goes to docs/results/scenes-sd/concepts.json, the picture to docs/concepts-scenes.png, and the tables into
docs/users/concept-maps.md.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, read_result
from diffprobe.evaluation.concepts_picture import PICTURE_FILE

DOCS = Path(__file__).resolve().parent
RESULT = DOCS / "results" / "scenes-sd" / "concepts.json"
PICTURE = DOCS / "concepts-scenes.png"
PAGE = DOCS / "users" / "concept-maps.md"
EXPERIMENT = "scenes/concepts"
METRICS = {
    "miou_pooled": "mean IoU, pooled",
    "miou_per_image": "mean IoU per image",
    "pixel_accuracy": "pixel accuracy",
    "mean_average_precision": "mean average precision",
}
"""Name of a record -> what it is."""
CONTROLS = {
    "raw_attention": "raw attention",
    "prompt_attention": "attention to the prompt (DAAM)",
    "random_weights": "random denoiser",
    "shuffled_words": "exchanged words",
    "majority_class": "most frequent class",
    "mean_colours": "mean colours of val",
}
"""Name of a control -> what it is."""


def scores(result: RunResult) -> dict[str, MetricRecord]:
    """Return the records of test by name."""
    return {one.name: one for one in result.metrics if one.split == "test"}


def score_lines(result: RunResult) -> list[str]:
    """Return the table of scores: the words, then each control with the difference to it."""
    found = scores(result)
    table = [["", *METRICS.values()], ["---"] * (len(METRICS) + 1)]
    own = []
    for name in METRICS:
        low, high = found[name].detail["interval"]
        own.append(f"**{100 * found[name].value:.1f}** [{100 * low:.1f}, {100 * high:.1f}]")
    table.append(["ConceptAttention", *own])
    for control, what in CONTROLS.items():
        row = [what]
        for name in METRICS:
            record = found[name]
            row.append(f"{100 * record.controls[control]:.1f} ({_signed(record.detail['differences'][control])})")
        table.append(row)
    return list(map(_line, table))


def class_lines(result: RunResult, name: str) -> list[str]:
    """Return the table of one score by class: the words, then each control."""
    record = scores(result)[name]
    classes = list(record.detail["by_class"])
    rows = {"ConceptAttention": record.detail["by_class"]}
    rows |= {what: record.detail["controls_by_class"][control] for control, what in CONTROLS.items()}
    table = [["", *classes], ["---"] * (len(classes) + 1)]
    table += [[what, *(f"{100 * values[one]:.1f}" for one in classes)] for what, values in rows.items()]
    return list(map(_line, table))


def choice_lines(result: RunResult) -> list[str]:
    """Return one line on the chosen cell."""
    record = scores(result)["miou_pooled"]
    return [
        f"Chosen by {record.detail['selected_by']}: `{(record.cell or '').replace(':prompt:none', '')}`, threshold "
        f"{record.detail['threshold']:g}."
    ]


TABLES = {
    "choice": choice_lines,
    "scores": score_lines,
    "iou": lambda result: class_lines(result, "miou_pooled"),
    "precision": lambda result: class_lines(result, "mean_average_precision"),
}
"""Name of the marks in the page -> table."""


def marks(name: str) -> tuple[str, str]:
    """Return the lines around a table in the page."""
    return f"<!-- {name}:start -->\n", f"<!-- {name}:end -->\n"


def _signed(interval: Iterable[float]) -> str:
    value, low, high = interval
    return f"{100 * value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def record(runs: Path | None) -> None:
    """Copy the result and the picture, and write the tables into the page; without runs, from what is kept."""
    for path in sorted(runs.rglob(RESULT_FILE)) if runs is not None else ():
        if read_result(path).experiment == EXPERIMENT:
            shutil.copyfile(path, RESULT)
            shutil.copyfile(path.with_name(PICTURE_FILE), PICTURE)
    result, text = read_result(RESULT), PAGE.read_text("utf-8")
    for name, lines in TABLES.items():
        start, end = marks(name)
        before, _, rest = text.partition(start)
        table = "\n".join(lines(result))
        text = f"{before}{start}\n{table}\n\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="the folder of the runs; without it, write the tables anew")
    record(parser.parse_args().runs)
