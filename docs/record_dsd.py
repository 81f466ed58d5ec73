"""Record results of `diffprobe score` with cross-attention: python docs/record_dsd.py RUNS, the folder of the runs.

Results of scenes/dsd, emoji/dsd, emoji/dsd_few_shot and emoji/overlap go to docs/results/scores/dsd, one file per
experiment and method. The table of docs/users/scores.md is made from all experiments of which both Diffusion Classifier
and DSD are there.
"""

import argparse
import shutil
import sys
from pathlib import Path

from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, read_result
from diffprobe.report.markdown_table import markdown_table

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "scores" / "dsd"
PAGE = DOCS / "users" / "scores.md"
MARKER = "dsd"
METHODS = {
    "diffusion_classifier": "Diffusion Classifier", "norm": "error of DSD alone", "dsd": "DSD",
    "attention": "attention alone", "few_shot": "few-shot DSD",
}  # fmt: skip
"""Method in the name of a file -> head of its column."""
EXPERIMENTS = {"scenes/dsd": ("scenes/dsd",), "emoji/dsd": ("emoji/dsd", "emoji/dsd_few_shot")}
"""Experiment in the name of a file -> experiments whose choices are the same."""
COMPARED = {"diffusion_classifier", "dsd"}
"""Methods without which an experiment has no rows."""
OVERLAP = "emoji/overlap"
"""Experiment of the overlap of classes, recorded for the text."""


def method_of(result: RunResult) -> str:
    """Return the method of a result: a DSD without errors is the attention alone, one without attention the error."""
    method, rule = str(result.config["method"]), result.config["dsd"]
    if method != "dsd":
        return method
    if rule.get("few_shot", {}).get("images"):  # results of earlier versions have no such setting
        return "few_shot"
    return "attention" if not rule["error_weight"] else "norm" if not rule["attention_weight"] else "dsd"


def recorded() -> dict[str, dict[str, RunResult]]:
    """Return the recorded results by experiment and method."""
    found: dict[str, dict[str, RunResult]] = {}
    for experiment in EXPERIMENTS:
        for method in METHODS:
            path = RESULTS / f"{experiment.replace('/', '-')}-{method}.json"
            if path.is_file():
                found.setdefault(experiment, {})[method] = read_result(path)
    return {experiment: methods for experiment, methods in found.items() if methods.keys() >= COMPARED}


def _value(record: MetricRecord) -> str:
    low, high = record.detail["interval"]
    return f"{100 * record.value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def table() -> list[str]:
    """Return the lines of the table: a row per metric, a column per method, in percent with intervals."""
    results = recorded()
    shown = [method for method in METHODS if any(method in found for found in results.values())]
    rows = []
    for of_methods in results.values():
        first = next(iter(of_methods.values()))
        by_method = {method: {record.name: record for record in one.metrics} for method, one in of_methods.items()}
        for record in first.metrics:
            values = [
                _value(by_method[method][record.name]) if record.name in by_method.get(method, {}) else ""
                for method in shown
            ]
            rows.append(
                [str(first.config["backbone"]["path"]), f"`{record.name}`", f"{record.n:,}", *values,
                 f"{100 * record.controls['chance']:.1f}", f"{record.detail['passes_per_image']:,.0f}"]
            )  # fmt: skip
    head = ["model", "metric", "images", *(METHODS[method] for method in shown), "chance", "passes per image"]
    return markdown_table(head, rows).splitlines()


def record(runs: Path) -> None:
    """Copy the results of a folder of runs, and write the table."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for experiment, sources in EXPERIMENTS.items():
        paths = [path for source in sources for path in (runs / source).glob(f"*/{RESULT_FILE}")]
        for path in sorted(paths, key=lambda path: path.stat().st_mtime):
            name = f"{experiment.replace('/', '-')}-{method_of(read_result(path))}.json"
            shutil.copyfile(path, RESULTS / name)
    for path in sorted((runs / OVERLAP).glob(f"*/{RESULT_FILE}"), key=lambda path: path.stat().st_mtime):
        shutil.copyfile(path, RESULTS / f"{OVERLAP.replace('/', '-')}.json")
    sys.path.insert(0, str(DOCS))
    from record_demo import with_table  # type: ignore[import-not-found]

    PAGE.write_text(with_table(PAGE.read_text("utf-8"), MARKER, table()), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="the folder of the runs, for example runs")
    record(parser.parse_args().runs)
