"""Record `diffprobe eval segmentation` and `eval depth` on scenes-sd: python docs/record_segmentation.py RUNS.

The results below RUNS/scenes go to docs/results/scenes-sd/segmentation, the tables into docs/users/segmentation.md, and
the few-label curves to docs/segmentation-labels.png. Without RUNS all is written anew from what is kept.
"""

import argparse
import shutil
from collections.abc import Iterable
from pathlib import Path

from diffprobe.core.result import MetricRecord, RunResult, read_result
from diffprobe.report.markdown_table import markdown_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "scenes-sd" / "segmentation"
PAGE = DOCS / "users" / "segmentation.md"
FIGURE = DOCS / "segmentation-labels.png"
NAMES = ("linear", "convolutional", "depth")
MIOU, DEPTH = "miou_pooled", ("rmse", "order_gap8", "order")
TITLES = {
    "random_weights": "random denoiser", "pixels": "pixels", "vae_latents": "VAE latents", "colours": "nearest colour",
    "mean_by_position": "by position", "shuffled_truth": "shuffled truth",
}  # fmt: skip
_LINES = {
    "own": ("#0072b2", "-", "o"), "random_weights": ("#d55e00", "--", "s"), "pixels": ("#009e73", "-.", "^"),
    "vae_latents": ("#cc79a7", ":", "D"), "colours": ("#e69f00", "--", "v"), "mean_by_position": ("#56b4e9", "-.", "o"),
    "shuffled_truth": ("#000000", ":", "s"),
}  # fmt: skip
_LOWER = "rmse"


def name_of(result: RunResult) -> str:
    """Return the name of the file of a result."""
    return "depth" if result.kind == "depth" else str(result.config["head"])


def tests(result: RunResult, score: str) -> list[MetricRecord]:
    """Return the test records of a score, by number of labelled images."""
    return [one for one in result.metrics if one.split == "test" and one.name.rpartition("_labels")[0] == score]


def score_table(result: RunResult, score: str) -> list[str]:
    """Return the chosen cell by number of labelled images, beside its controls."""
    names = [name for name in TITLES if name in result.config["controls"]]
    header = ["labelled images", "cell", "value", "draws", *(TITLES[name] for name in names), "difference to the best"]
    rows = []
    for record in tests(result, score):
        low, high = record.detail["interval"]
        sign = -1 if score == _LOWER else 1
        best = max(record.controls, key=lambda name: sign * record.controls[name])
        rows.append(
            [str(record.detail["labels"]), f"`{_short(record.cell)}`",
             f"**{_number(record.value)}** [{_number(low)}, {_number(high)}]",
             ", ".join(map(_number, record.detail["by_draw"])),
             *(_number(record.controls[name]) for name in names), _signed(record.detail["differences"][best])]
        )  # fmt: skip
    return markdown_table(header, rows).splitlines()


def class_table(results: dict[str, RunResult]) -> list[str]:
    """Return the IoU of each class, by head and number of labelled images."""
    classes = list(results["linear"].config["classes"])
    rows = [
        [head, str(record.detail["labels"]), *(_number(record.detail["iou_pooled"][name]) for name in classes)]
        for head in ("linear", "convolutional")
        for record in tests(results[head], MIOU)
    ]
    return markdown_table(["head", "labelled images", *classes], rows).splitlines()


def grid_table(result: RunResult, score: str) -> list[str]:
    """Return the score of all cells on val, by number of labelled images."""
    found = [one for one in result.metrics if one.split == "val" and one.name.rpartition("_labels")[0] == score]
    cells = list(dict.fromkeys(_short(one.cell) for one in found))
    taps = list(dict.fromkeys(cell.partition("@")[0] for cell in cells))
    steps = list(dict.fromkeys(cell.partition("@")[2] for cell in cells))
    values = {(one.detail["labels"], _short(one.cell)): one.value for one in found}
    rows = [
        [f"`{tap}`", *(_number(values[n, f"{tap}@{step}"]) for n in result.config["labels"] for step in steps)]
        for tap in taps
    ]
    return markdown_table(
        ["tap", *(f"{n}, {step}" for n in result.config["labels"] for step in steps)], rows
    ).splitlines()  # fmt: skip


def tables(results: dict[str, RunResult]) -> dict[str, list[str]]:
    """Return the parts of the page that are written, by name."""
    return {
        "linear": score_table(results["linear"], MIOU),
        "classes": class_table(results),
        "grid": grid_table(results["linear"], MIOU),
        "convolutional": score_table(results["convolutional"], MIOU),
        **{name: score_table(results["depth"], name) for name in DEPTH},
        "depth-grid": grid_table(results["depth"], DEPTH[0]),
    }


def marks(name: str) -> tuple[str, str]:
    """Return the lines around a table in the page."""
    return f"<!-- {name}:start -->\n", f"<!-- {name}:end -->\n"


def draw(results: dict[str, RunResult]) -> None:
    """Draw the mean IoU of the linear readouts, and the error of depth, over the number of labelled images."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from diffprobe.report.figure import figure_class
    from diffprobe.report.figure_file import save_figures

    figure = figure_class()(figsize=(9, 3.6))
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    titles = {
        "linear": (MIOU, "mean IoU of classes, pooled"),
        "depth": (DEPTH[0], "RMSE of depth levels (less is better)"),
    }
    for axes, (name, (score, title)) in zip(panels, titles.items(), strict=True):
        records = tests(results[name], score)
        labels = [record.detail["labels"] for record in records]
        for rung, (colour, dash, marker) in _LINES.items():
            if rung != "own" and rung not in records[0].controls:
                continue
            by_draw = [
                record.detail["by_draw"] if rung == "own" else record.detail["control_by_draw"][rung]
                for record in records
            ]
            axes.plot(labels, [sum(one) / len(one) for one in by_draw], dash, color=colour, marker=marker, ms=5, lw=1.5,
                      label="chosen cell" if rung == "own" else TITLES[rung])  # fmt: skip
            axes.fill_between(labels, [min(one) for one in by_draw], [max(one) for one in by_draw], color=colour,
                              alpha=0.15, lw=0)  # fmt: skip
        axes.set_xscale("log", base=2)
        axes.set_xticks(labels, [str(n) for n in labels])
        axes.minorticks_off()
        axes.set_xlabel("labelled images")
        axes.set_title(title, loc="left", fontsize=10)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    panels[0].set_ylim(0, 1)
    panels[1].set_ylim(0)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=9)
    figure.set_layout_engine("constrained")
    save_figures([figure], FIGURE)


def record(runs: Path | None) -> None:
    """Copy the results, and write the tables and the figure."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for path in sorted(runs.glob("scenes/*/*/result.json")) if runs is not None else ():
        result = read_result(path)
        if result.kind in ("segmentation", "depth"):
            shutil.copyfile(path, RESULTS / f"{name_of(result)}.json")
    results = {name: read_result(RESULTS / f"{name}.json") for name in NAMES}
    text = PAGE.read_text("utf-8")
    for name, lines in tables(results).items():
        start, end = marks(name)
        before, found, rest = text.partition(start)
        assert found and end in rest, name
        text = f"{before}{start}\n" + "\n".join(lines) + f"\n\n{end}{rest.partition(end)[2]}"
    PAGE.write_text(text, encoding="utf-8")
    draw(results)


def _short(cell: str | None) -> str:
    return (cell or "").replace(":empty:none", "")


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1 else f"{value:.2f}"


def _signed(interval: Iterable[float]) -> str:
    value, low, high = interval
    digits = 3 if abs(value) < 1 else 2
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="?", help="the folder of the runs, for example runs")
    record(parser.parse_args().runs)
