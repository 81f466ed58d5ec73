"""Record `diffprobe eval correspondence` on scenes-sd: python docs/record_correspondence.py RUNS, the folder of runs.

The result files go to docs/results/scenes-sd/correspondence, and the tables into docs/users/correspondence.md. With the
runs of the CleanDIFT training and of `scenes/layers` on both models in the folder, these are recorded too.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, read_result

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "scenes-sd" / "correspondence"
PAGE = DOCS / "users" / "correspondence.md"
METRIC, STRICT, PROBE = "pck@0.1_per_point_box", "pck@0.05_per_point_box", "nearest_neighbour"
RUNS = {
    "other_role": "images of different roles",
    "same_role": "images of one role",
    "mirrored": "different roles, target mirrored",
}
"""Name of a file -> what is paired."""
CONTROLS = ("pixels", "vae_latents", "random_weights", "same_place", "chance")
POINTS = ("head", "hat_tip", "left_foot", "right_foot", "free_hand", "tool_grip", "tool_end")
FEATURES = {
    "cleandift": "CleanDIFT, clean image",
    "fusion_pixels": "chosen cell and pixels",
    "fusion_vae_latents": "chosen cell and VAE latents",
    "hyperfeatures": "mixture of 16 cells",
    "hyperfeatures_equal": "mixture, equal weights",
    "hyperfeatures_single": "bottleneck on the chosen cell alone",
    "hyperfeatures_random": "mixture, random weights of the denoiser",
}
"""Probe of a record -> what it is."""
BESIDE = {"beside": 200, "few_pairs": 10}
"""Name of a file -> training pairs of the mixtures."""
SEEDS, DRAWS = range(5), 8
FACTORS = (("", "texture"), ("", "build"), ("emoji_", "group"))
"""Start of the names of the files of a model, and what is read from it."""
MODELS = tuple(f"{model}{what}" for model in ("", "emoji_") for what in ("training", "probe", "probe_cleandift"))
ALL = (*RUNS, *BESIDE, "flip", *(f"draw_{seed}" for seed in SEEDS), "draws_8", "clean_input", *MODELS)
"""Names of all files."""


def name_of(result: RunResult) -> str | None:
    """Return the name of the file of a run; None for a run that is not recorded."""
    config = result.config
    model = "emoji_" if result.experiment.startswith("emoji/") else ""
    if result.kind == "train_backbone":
        return f"{model}training" if "teacher" in config else None
    if result.kind == "classifier":
        return f"{model}probe_cleandift" if config["backbone"]["clean_input"] else f"{model}probe"
    if result.kind != "correspondence":
        return None
    if config["backbone"]["clean_input"]:
        return "clean_input"
    if config.get("flip"):
        return "flip"
    if config.get("mixture"):
        return next(name for name, n in BESIDE.items() if n == config["mixture"]["n_pairs"])
    if config.get("cleandift"):
        draws, seed = config["features"]["draws"], config["features"]["seed"]
        return f"draw_{seed}" if draws == 1 else "draws_8"
    if config["mirror"]:
        return "mirrored"
    return "same_role" if config["same"] else "other_role"


def chosen(result: RunResult, metric: str = METRIC, probe: str = PROBE) -> MetricRecord:
    """Return the record of the chosen cell on test, or of other features."""
    (found,) = [one for one in result.metrics if (one.split, one.name, one.probe) == ("test", metric, probe)]
    return found


def lines_of(results: dict[str, RunResult]) -> list[str]:
    """Return the tables of pairs and of points."""
    head = ["pairs", "cell", "PCK", *(name.replace("_", " ") for name in CONTROLS), "above the best control"]
    table, by_point = [head, ["---"] * len(head)], [["pairs", *POINTS], ["---"] * (len(POINTS) + 1)]
    for name, what in RUNS.items():
        record = chosen(results[name])
        best = max(record.detail["differences"], key=lambda control: record.controls[control])
        numbers = [f"{100 * record.controls[control]:.1f}" for control in CONTROLS]
        above = _signed(record.detail["differences"][best])
        table.append([what, f"`{_short(record.cell)}`", _percent(record), *numbers, above])
        by_point.append([what, *(f"{100 * record.detail['by_point'][point]:.0f}" for point in POINTS)])
    return [*map(_line, table), "", "By point:", "", *map(_line, by_point)]


def beside_lines(results: dict[str, RunResult]) -> list[str]:
    """Return the table of other features beside the chosen cell, on images of different roles."""
    head = ["features", "training pairs", "chosen on val", "PCK@0.1", "PCK@0.05", "above the chosen cell, @0.05"]
    table = [head, ["---"] * len(head)]
    own = [chosen(results["beside"], metric) for metric in (METRIC, STRICT)]
    table.append(["chosen cell, 2 draws", "", f"`{_short(own[0].cell)}`", *map(_percent, own), ""])
    single = [f"{100 * one.controls['single_draw']:.1f}" for one in own]
    table.append(["the same, a single draw", "", "", *single, ""])
    clean = [chosen(results["clean_input"], metric) for metric in (METRIC, STRICT)]
    table.append(["frozen model, clean image", "", f"`{_short(clean[0].cell)}`", *map(_percent, clean), ""])
    for name, pairs in BESIDE.items():
        for probe, what in FEATURES.items():
            trained = probe.startswith("hyperfeatures")
            if name == "few_pairs" and not trained:
                continue
            found = [chosen(results[name], metric, probe) for metric in (METRIC, STRICT)]
            choice = str(found[0].detail["choice"])
            choice = f"weight {choice}" if probe.startswith("fusion") else f"`{_short(choice)}`"
            above = _signed(found[1].detail["above_nearest_neighbour"])
            table.append([what, str(pairs) if trained else "", choice, *map(_percent, found), above])
    return list(map(_line, table))


def weight_lines(results: dict[str, RunResult]) -> list[str]:
    """Return the weights of the mixtures, summed by tap."""
    table = []
    for name, pairs in BESIDE.items():
        weights = chosen(results[name], METRIC, "hyperfeatures").detail["weights"]
        taps = list(dict.fromkeys(cell.partition("@")[0] for cell in weights))
        if not table:
            table = [["training pairs", *(f"`{tap}`" for tap in taps), "largest cell"], ["---"] * (len(taps) + 2)]
        sums = [sum(value for cell, value in weights.items() if cell.partition("@")[0] == tap) for tap in taps]
        largest = max(weights, key=lambda cell: float(weights[cell]))
        table.append([str(pairs), *(f"{one:.3f}" for one in sums), f"`{_short(largest)}` {weights[largest]:.3f}"])
    return list(map(_line, table))


def draw_lines(results: dict[str, RunResult]) -> list[str]:
    """Return PCK of one noise draw over seeds, of eight, and of CleanDIFT."""
    table = [["features", "noise draws", "PCK@0.1", "PCK@0.05"], ["---"] * 4]
    for what, draws, names, probe in (
        ("chosen cell", "1", [f"draw_{seed}" for seed in SEEDS], PROBE),
        ("chosen cell", str(DRAWS), ["draws_8"], PROBE),
        ("CleanDIFT", "none", [f"draw_{seed}" for seed in SEEDS], "cleandift"),
    ):
        cells = []
        for metric in (METRIC, STRICT):
            values = [100 * chosen(results[name], metric, probe).value for name in names]
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.1f}{spread}")
        table.append([what, draws, *cells])
    return list(map(_line, table))


def flip_lines(results: dict[str, RunResult]) -> list[str]:
    """Return the flip test: how often a foot goes to its own copy in the mirror image."""
    (swaps,) = [one for one in results["flip"].metrics if one.name == "flip_swap"]
    table = [["features", "feet that go to their own copy"], ["---"] * 2]
    names = {"": "chosen cell", **FEATURES, "pixels": "pixels", "vae_latents": "VAE latents",
             "random_weights": "random weights"}  # fmt: skip
    for name, what in names.items():
        if name == "":
            low, high = swaps.detail["interval"]
            table.append([what, f"{100 * swaps.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"])
        elif name in swaps.controls:
            table.append([what, f"{100 * swaps.controls[name]:.1f}"])
    return list(map(_line, table))


def probe_lines(results: dict[str, RunResult]) -> list[str]:
    """Return balanced accuracy on test by block, of the teacher's timestep that is best on val, and of CleanDIFT."""
    table = [["block", *(f"{factor}, {model}" for _, factor in FACTORS for model in ("teacher", "CleanDIFT"))]]
    table.append(["---"] * len(table[0]))
    cells = [one.cell for one in results["probe_cleandift"].metrics if one.cell is not None]
    for tap in dict.fromkeys(cell.partition("@")[0] for cell in cells):
        row = [f"`{tap}`"]
        for model, factor in FACTORS:
            for name in (f"{model}probe", f"{model}probe_cleandift"):
                values = {split: _accuracies(results[name].metrics, tap, factor, split) for split in ("val", "test")}
                best = max(values["val"], key=lambda cell: values["val"][cell])
                step = f" ({best.partition('@')[2].partition(':')[0]})" if name.endswith("probe") else ""
                row.append(f"{100 * values['test'][best]:.1f}{step}")
        table.append(row)
    return list(map(_line, table))


def _accuracies(records: Iterable[MetricRecord], tap: str, factor: str, split: str) -> dict[str, float]:
    return {
        str(one.cell): one.value
        for one in records
        if (one.name, one.target, one.split) == ("balanced_accuracy", factor, split)
        and (one.cell or "").startswith(f"{tap}@")
    }


TABLES = {
    "correspondence": lines_of,
    "beside": beside_lines,
    "weights": weight_lines,
    "draws": draw_lines,
    "flip": flip_lines,
    "probe": probe_lines,
}
"""Name of the marks in the page -> table."""


def marks(name: str) -> tuple[str, str]:
    """Return the lines around a table in the page."""
    return f"<!-- {name}:start -->\n", f"<!-- {name}:end -->\n"


def _short(cell: str | None) -> str:
    return (cell or "").replace(":empty:none", "")


def _percent(record: MetricRecord) -> str:
    low, high = record.detail["interval"]
    return f"**{100 * record.value:.1f}** [{100 * low:.1f}, {100 * high:.1f}]"


def _signed(interval: Iterable[float]) -> str:
    value, low, high = interval
    return f"{100 * value:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def record(runs: Path) -> None:
    """Copy the results, and write the tables into the page; results that are not in the folder stay as recorded."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for path in sorted(runs.rglob(RESULT_FILE)):
        name = name_of(read_result(path))
        if name is not None:
            shutil.copyfile(path, RESULTS / f"{name}.json")
    results = {name: read_result(RESULTS / f"{name}.json") for name in ALL}
    text = PAGE.read_text("utf-8")
    for name, lines in TABLES.items():
        start, end = marks(name)
        before, _, rest = text.partition(start)
        table = "\n".join(lines(results))
        text = f"{before}{start}\n{table}\n\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the runs, for example runs")
    record(parser.parse_args().runs)
