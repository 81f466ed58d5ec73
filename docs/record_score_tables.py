"""Record results for further tables of scores: python docs/record_score_tables.py TABLE NAME=RESULT ...

Each result goes to docs/results/scores/TABLE/NAME.json: `weights` has scores with other weights of timesteps,
`text_free` scores beside a model that learned nothing about captions, `diffdis` runs of the alignment head. All tables
are made anew from what is there.
"""

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from diffprobe.core.result import MetricRecord, RunResult, read_result
from diffprobe.report.markdown_table import markdown_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "scores"
SCORES, CAPTIONS = DOCS / "users" / "scores.md", DOCS / "users" / "caption-regression.md"


def recorded(table: str) -> dict[str, RunResult]:
    """Return the recorded results of a table by name."""
    return {path.stem: read_result(path) for path in sorted((RESULTS / table).glob("*.json"))}


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _difference(record: MetricRecord, control: str) -> str:
    found = record.detail["differences"][control]
    return f"{_percent(found['estimate'])} [{_percent(found['low'])}, {_percent(found['high'])}]"


def _is_choice(record: MetricRecord) -> bool:
    return not record.name.startswith("matched_pair")


def weights_table(results: dict[str, RunResult]) -> list[str]:
    """Return a row per metric and kind of weights: accuracy in percent, paired with uniform weights."""
    rows = [
        [str(result.config["backbone"]["path"]), f"`{record.name}`", f"{record.n:,}", result.config["weights"]["kind"],
         _percent(record.value), _percent(record.controls["uniform_weights"]), _difference(record, "uniform_weights"),
         f"{record.detail['passes_per_image']:,.0f}"]
        for result in results.values() for record in result.metrics if _is_choice(record)
    ]  # fmt: skip
    header = ["model", "metric", "images", "weights", "value", "uniform weights", "difference", "passes per image"]
    return markdown_table(header, rows).splitlines()


def text_free_table(results: dict[str, RunResult]) -> list[str]:
    """Return a row per metric: accuracy beside the text-free and the random model, in percent."""
    names = ("text_free_model", "random_denoiser", "shuffled_positives", "chance")
    rows = [
        [str(result.config["backbone"]["path"]), f"`{record.name}`", f"{record.n:,}", _percent(record.value),
         *(_percent(record.controls[name]) for name in names), _difference(record, "text_free_model")]
        for result in results.values() for record in result.metrics if _is_choice(record)
    ]  # fmt: skip
    header = ["model", "metric", "images", "value", *(name.replace("_", " ") for name in names), "above text-free"]
    return markdown_table(header, rows).splitlines()


def diffdis_table(results: dict[str, RunResult]) -> list[str]:
    """Return a row per score of one step: it and that of DDIM, with intervals and controls."""
    rows = []
    for result in results.values():
        by_name = {record.name: record for record in result.metrics if record.split == "test"}
        for name, record in by_name.items():
            other = by_name.get(f"{name}_ddim")
            if other is None:
                continue
            values = []
            for one in (record, other):
                low, high = one.detail["interval"]
                values.append(f"{one.value:.3f} [{low:.3f}, {high:.3f}]")
            controls = [f"{value:.3f}" for _, value in sorted(record.controls.items())]
            rows.append([f"`{name}`", f"{record.n:,}", *values, *controls])
    shown = sorted(next(iter(results.values())).metrics[0].controls) if results else []
    header = ["score", "images", "one step", "DDIM", *(f"{name.replace('_', ' ')}, one step" for name in shown)]
    return markdown_table(header, rows).splitlines()


TABLES: dict[str, tuple[Path, Callable[[dict[str, RunResult]], list[str]]]] = {
    "weights": (SCORES, weights_table), "text_free": (SCORES, text_free_table), "diffdis": (CAPTIONS, diffdis_table),
}  # fmt: skip
"""Table, also its marker on the page -> page, and what makes it."""


def record(table: str, sources: dict[str, Path]) -> None:
    """Copy results, and write all tables that have any."""
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    (RESULTS / table).mkdir(parents=True, exist_ok=True)
    for name, path in sources.items():
        shutil.copyfile(path, RESULTS / table / f"{name}.json")
    for name, (page, make) in TABLES.items():
        if results := recorded(name):
            page.write_text(with_table(page.read_text("utf-8"), name, make(results)), encoding="utf-8")


def _source(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if not (name.isidentifier() and equals and Path(path).is_file()):
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=RESULT with an existing result.json")
    return name, Path(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", choices=sorted(TABLES))
    parser.add_argument("results", nargs="*", type=_source, help="NAME=RESULT, for example emoji=runs/.../result.json")
    given = parser.parse_args()
    record(given.table, dict(given.results))
