"""Record results of `diffprobe score` for the documentation: python docs/record_scores.py [NAME=RESULT ...].

Each result goes to docs/results/scores/NAME.json. From all that are there, the table of docs/users/scores.md, the table
of costs below it, and the figure docs/scores-passes.png are made.
"""

import argparse
import shutil
import sys
from pathlib import Path

from diffprobe.core.result import MetricRecord, RunResult, read_result
from diffprobe.report.markdown_table import markdown_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "scores"
PAGE = DOCS / "users" / "scores.md"
FIGURE = DOCS / "scores-passes.png"
_CONTROLS = {
    "chance": "chance", "shuffled_positives": "shuffled positives", "random_denoiser": "random denoiser",
    "regression_on_words": "regression on words", "regression_on_text_encoder": "on the text encoder",
    "most_frequent_class": "most frequent class",
}  # fmt: skip

_FIRST = (1, 2, 4, 8)
"""Numbers of timesteps of the table of costs."""


def recorded() -> dict[str, RunResult]:
    """Return the recorded results by name."""
    return {path.stem: read_result(path) for path in sorted(RESULTS.glob("*.json"))}


def _number(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _interval(record: MetricRecord) -> str:
    low, high = record.detail["interval"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def accuracy_table(results: dict[str, RunResult]) -> list[str]:
    """Return the lines of the table of accuracies: a row per metric, in percent."""
    rows = []
    for result in results.values():
        model = str(result.config["backbone"]["path"])
        for record in result.metrics:
            controls = [_number(record.controls.get(name)) for name in _CONTROLS]
            cost = f"{record.detail['passes_per_image']:,.0f}"
            name = f"`{record.name}`"
            rows.append(
                [model, name, f"{record.n:,}", _number(record.value), _interval(record), _number(record.spread),
                 *controls, cost]
            )  # fmt: skip
    header = [
        "model",
        "metric",
        "images",
        "value",
        "interval",
        "sd over noise",
        *_CONTROLS.values(),
        "passes per image",
    ]
    return markdown_table(header, rows).splitlines()


def curve_table(results: dict[str, RunResult]) -> list[str]:
    """Return the lines of the table of accuracy with the first timesteps alone: a row per metric."""
    rows = []
    for result in results.values():
        for record in result.metrics:
            points = record.detail.get("curve", ())
            if points:
                first = {int(point["n_timesteps"]): _number(point["accuracy"]) for point in points[:-1]}
                last = points[-1]
                rows.append(
                    [f"`{record.name}`", f"{points[0]['passes']:,.0f}", *(first.get(n, "") for n in _FIRST),
                     f"{_number(last['accuracy'])} ({last['n_timesteps']:g})"]
                )  # fmt: skip
    header = ["metric", "passes per timestep", *map(str, _FIRST), "all timesteps"]
    return markdown_table(header, rows).splitlines()


def draw(results: dict[str, RunResult]) -> None:
    """Draw the curves of all results into one figure."""
    from dataclasses import replace

    from diffprobe.report.figure_file import save_figures
    from diffprobe.report.score_figure import accuracy_by_passes

    first = next(iter(results.values()))
    metrics = [record for result in results.values() for record in result.metrics]
    save_figures([accuracy_by_passes(replace(first, metrics=metrics))], FIGURE)


def record(sources: dict[str, Path]) -> None:
    """Copy results, and write tables and figure."""
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, path in sources.items():
        shutil.copyfile(path, RESULTS / f"{name}.json")
    results = recorded()
    text = PAGE.read_text("utf-8")
    for name, lines in {"scores": accuracy_table(results), "passes": curve_table(results)}.items():
        text = with_table(text, name, lines)
    PAGE.write_text(text, encoding="utf-8")
    draw(results)


def _source(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name.isidentifier() and equals and Path(path).is_file()):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=RESULT with an existing result.json")
    return name, Path(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "results", nargs="*", type=_source, help="NAME=RESULT, for example emoji10=runs/.../result.json"
    )
    record(dict(parser.parse_args().results))
