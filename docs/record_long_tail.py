"""Train and evaluate all variants of scenes/long_tail over seeds, and write a table of their differences from plain.

    python docs/record_long_tail.py --autoencoder scenes-sd --seeds 0 1 2

A repeated command continues: finished runs and evaluations are kept, an interrupted run goes on from its checkpoint.
Settings after `--` go to each training (`trainer.max_steps=4000`). With `--page` nothing is trained: the finished CSV
of `--out` becomes the table of docs/users/long-tail.md that is marked with its name.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from diffprobe.analysis.statistics import bootstrap_interval, mean_of
from diffprobe.config.compose import load
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.registry import REGULARIZERS
from diffprobe.core.result import RunResult, read_result

sys.path.insert(0, str(Path(__file__).resolve().parent))
from finished_runs import evaluated, trained
from page_tables import with_table

VARIANTS = ("plain", "diffrop", "cbdm", "oc", "coral", "capacity")
TWO_PASSES = ("diffrop", "cbdm", "capacity")
STEPS, COMPUTE = "equal steps", "equal compute"
N_RESAMPLES = 2000
METRICS = ("role_accuracy", "precision", "recall", "density", "coverage", "frechet_distance", "class_overlap")


PAGE = Path(__file__).resolve().parent / "users" / "long-tail.md"
OUT = Path(__file__).resolve().parent / "results" / "long-tail.csv"
SHOWN = {
    ("role_accuracy", "many"): "role, many", ("role_accuracy", "medium"): "role, medium",
    ("role_accuracy", "few"): "role, few", ("recall", "few"): "recall, few", ("coverage", "few"): "coverage, few",
    ("density", "few"): "density, few", ("precision", "few"): "precision, few",
    ("frechet_distance", "few"): "Frechet, few", ("class_overlap", "all"): "overlap, all",
}  # fmt: skip
"""(metric, target) -> heading of its column on the page."""


@dataclass(frozen=True)
class Cell:
    """One run of the sweep: a variant with a budget and a seed."""

    variant: str
    budget: str
    seed: int


def cells(seeds: Sequence[int], variants: Sequence[str] = VARIANTS) -> list[Cell]:
    """Return all runs; a variant with one pass per step, as plain, has equal steps and compute in one."""
    found = []
    for seed in seeds:
        for variant in variants:
            budgets = (STEPS, COMPUTE) if variant in TWO_PASSES else (STEPS,)
            found += [Cell(variant, budget, seed) for budget in budgets]
    return found


def config_of(cell: Cell, settings: Sequence[str]) -> Any:
    """Return the configuration of a run; at equal compute its steps are divided by the passes of a step."""
    config = load(f"scenes/long_tail/{cell.variant}", [f"seed={cell.seed}", *settings])
    if cell.budget == STEPS:
        return config
    from diffprobe.generative.objectives.base import ForwardProcess
    from diffprobe.generative.regularizers.base import TrainingClasses, make_regularizer

    assert config.regularizer.name in REGULARIZERS.names()
    process = ForwardProcess(config.noise.scheduler().alphas_cumprod.float())
    classes = TrainingClasses("any", ("a", "b"), (2, 2))
    passes = 1 + make_regularizer(config.regularizer, process, "epsilon", classes).extra_passes
    return replace(config, trainer=replace(config.trainer, max_steps=config.trainer.max_steps // passes))


def measured(folder: Path, settings: Sequence[str]) -> RunResult:
    """Return the evaluation of a run, measured now unless it is there."""
    from diffprobe.evaluation.long_tail import evaluate_long_tail

    config = load("scenes/long_tail/evaluate", [f"run={folder}", *settings])
    return read_result(evaluated(config, evaluate_long_tail))


def rows_of(cell: Cell, result: RunResult) -> list[dict[str, Any]]:
    """Return the rows of the table of one run: of each third, and of each of its classes if the metric has these."""
    found = []
    for record in result.metrics:
        if record.name not in METRICS:
            continue
        row = {"variant": cell.variant, "budget": cell.budget, "seed": cell.seed, "metric": record.name,
               "target": record.target}  # fmt: skip
        found.append({**row, "class": "", "value": record.value, "rendered": record.controls.get("rendered", "")})
        if record.target != "all":
            by_class = record.detail.get("by_class", {})
            found += [{**row, "class": name, "value": value, "rendered": ""} for name, value in by_class.items()]
    return found


@dataclass(frozen=True)
class Difference:
    """A variant minus plain training, paired by seed."""

    mean: float
    low: float
    high: float
    """Ends of the 95 % interval over classes; without values by class the range over seeds."""
    by_seed: tuple[float, ...]


def differences(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str, str, str], Difference]:
    """Return (variant, budget, metric, target) -> difference from plain, of the seeds that both have.

    The interval resamples classes; the difference of a class is the mean over seeds.
    """
    keys = ("variant", "budget", "metric", "target", "class", "seed")
    values = {tuple(str(row[key]) for key in keys): float(row["value"]) for row in rows}
    found = {}
    for variant, budget, metric, target in dict.fromkeys(key[:4] for key in values if key[0] != "plain"):
        paired: dict[str, list[float]] = {}
        for key, value in values.items():
            other = ("plain", STEPS, *key[2:])
            if key[:4] == (variant, budget, metric, target) and other in values:
                paired.setdefault(key[4], []).append(value - values[other])
        if not paired:
            continue
        by_seed = tuple(paired.pop(""))
        low, high = min(by_seed), max(by_seed)
        if paired:
            by_class = np.array([statistics.mean(one) for one in paired.values()])
            interval = bootstrap_interval(
                mean_of(by_class), list(paired), n_resamples=N_RESAMPLES, seed=0, method="expanded"
            )  # a third has 8 classes
            low, high = interval.low, interval.high
        found[variant, budget, metric, target] = Difference(statistics.mean(by_seed), low, high, by_seed)
    return found


def lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the Markdown table of the page: plain as mean over seeds and their range, others as their differences."""
    found = ["| variant | budget | " + " | ".join(SHOWN.values()) + " |", "| :-- | :-- |" + " --: |" * len(SHOWN)]
    means = [row for row in rows if not row["class"]]
    entries = []
    for metric, target in SHOWN:
        plain = ("plain", metric, target)
        own = [float(row["value"]) for row in means if (row["variant"], row["metric"], row["target"]) == plain]
        entries.append(f"{_number(statistics.mean(own))} [{_number(min(own))}, {_number(max(own))}]")
    found.append(f"| plain | {STEPS} | " + " | ".join(entries) + " |")
    paired = differences(rows)
    for variant, budget in dict.fromkeys(key[:2] for key in paired):
        entries = []
        for metric, target in SHOWN:
            one = paired[variant, budget, metric, target]
            entries.append(f"{_number(one.mean, '+')} [{_number(one.low, '+')}, {_number(one.high, '+')}]")
        found.append(f"| {variant} | {budget} | " + " | ".join(entries) + " |")
    return found


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.2f}" if abs(value) >= 10 else f"{value:{sign}.3f}"


def marker(table: Path) -> str:
    """Return the line of the page above the table of a CSV."""
    return f"<!-- table: {table.stem} -->\n"


def write_page(table: Path) -> None:
    """Write the table of a finished CSV into the page, below its marker. Raises: SystemExit without the marker."""
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), marker(table), lines(rows)), "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sweep; the table is written anew after each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--autoencoder", default="scenes-sd")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--evaluation", action="append", default=[], help="setting of scenes/long_tail/evaluate")
    parser.add_argument("--page", action="store_true", help="write the page from the finished table of --out")
    parser.add_argument("settings", nargs="*", help="settings of each training")
    args = parser.parse_args(arguments)
    if args.page:
        write_page(args.out)
        return
    rows: list[dict[str, Any]] = []
    for cell in cells(args.seeds, args.variants):
        config = config_of(cell, [f"autoencoder={args.autoencoder}", *args.settings])
        rows += rows_of(cell, measured(trained(config), args.evaluation))
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.out) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    for (variant, budget, metric, target), one in differences(rows).items():
        print(f"{variant}, {budget}: {metric} of {target} {one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]")


if __name__ == "__main__":
    main()
