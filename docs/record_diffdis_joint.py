"""Train and evaluate scenes/diffdis_joint at equal compute, and write docs/users/joint-training.md's tables.

    python docs/record_diffdis_joint.py
    python docs/record_diffdis_joint.py --evaluation n_per_role=5 "model.channels=[16,32,48]" trainer.max_steps=400

Settings go to each of the three trainings; `trainer.max_steps` is that of the joint model, and the steps of the others
follow from the operations of their passes. A repeated command continues: finished runs and evaluations are kept.
Results go to docs/results/diffdis-joint.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from diffprobe.analysis.statistics import mean_of, paired_interval
from diffprobe.config.compose import load
from diffprobe.core.result import RESULT_FILE, MetricRecord, RunResult, read_result
from diffprobe.report.markdown_table import markdown_table

sys.path.insert(0, str(Path(__file__).resolve().parent))
from finished_runs import evaluated, trained

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS / "results" / "diffdis-joint"
PAGE = DOCS / "users" / "joint-training.md"
MODELS = ("joint", "generation", "alignment")
"""Models, by the names of their experiments; the first one has both tasks."""
DIFFERENCES = "differences.json"
GENERATION = ("stated_accuracy", "role_accuracy", "frechet_distance")
MEASURES = tuple(f"{way}_recall_{k}" for way in ("caption", "image") for k in (1, 5, 10))
INFERENCES = ("one_step", "one_step_w1", "ddim", "ddim_w1")
N_RESAMPLES = 2000


def configs(settings: Sequence[str]) -> dict[str, Any]:
    """Return the configurations of the three trainings, the single tasks at the compute of the joint model."""
    from diffprobe.generative.alignment import steps_of_equal_compute
    from diffprobe.generative.joint_denoiser import JointDenoiserModule

    found = {name: load(f"scenes/diffdis_joint/{name}", list(settings)) for name in MODELS}
    flops = JointDenoiserModule(found["joint"]).flops_per_sample()
    for name, steps in steps_of_equal_compute(found["joint"].trainer.max_steps, flops).items():
        found[name] = replace(found[name], trainer=replace(found[name].trainer, max_steps=steps))
    return found


def measured(folder: Path, settings: Sequence[str]) -> Path:
    """Return the result of the evaluation of a run, measured now unless it is there."""
    from diffprobe.evaluation.joint import evaluate_joint

    return evaluated(load("scenes/diffdis_joint/evaluate", [f"run={folder}", *settings]), evaluate_joint)


def differences(samples: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the joint model minus the model of one task, for each measure with values by image.

    Args:
        samples: model -> contents of its `samples.json`.
    Returns: rows with `model` (that of one task), `target`, `name`, `estimate`, `low` and `high`: 95 % intervals from
        resampling images, the same for both models.
    """
    rows = []
    for model in MODELS[1:]:
        for target, values in samples[model].items():
            for name, other in values.items():
                if name == "groups":
                    continue
                own = samples["joint"][target][name]
                clusters = values.get("groups", [str(number) for number in range(len(other))])
                found = paired_interval(
                    mean_of(np.array(own)), mean_of(np.array(other)), clusters, n_resamples=N_RESAMPLES, seed=0
                )
                rows.append(
                    {"model": model, "target": target, "name": name, "estimate": found.estimate, "low": found.low,
                     "high": found.high}
                )  # fmt: skip
    return rows


def recorded() -> dict[str, RunResult]:
    """Return the recorded results: evaluations by model, and trainings by model with the ending `-training`."""
    names = [*MODELS, *(f"{name}-training" for name in MODELS)]
    return {name: read_result(RESULTS / f"{name}.json") for name in names if (RESULTS / f"{name}.json").is_file()}


def tables(results: Mapping[str, RunResult], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the lines of each table of the page by its marker."""
    return {
        "joint-compute": _compute(results),
        "joint-generation": _generation(results, rows),
        "joint-retrieval": _retrieval(results, rows),
    }


def _compute(results: Mapping[str, RunResult]) -> list[str]:
    table = []
    flops = results["joint"].metrics[0].detail["trained"]["flops_per_sample"]
    for name in MODELS:
        facts = results[name].metrics[0].detail["trained"]
        passes, steps = facts["passes"], facts["max_steps"]
        cost = sum(passes[part] * flops[part] for part in passes)
        batch = results[f"{name}-training"].config["data"]["batch_size"]
        table.append(
            [name, f"{steps:,}", str(passes["forward"]), str(passes["alignment"]), f"{cost / 1e6:.1f}",
             f"{steps * batch * cost / 1e12:.2f}"]
        )  # fmt: skip
    head = ["model", "steps", "whole passes", "encoder-half passes", "MFLOP per sample", "TFLOP in all, forward"]
    return markdown_table(head, table).splitlines()


def _generation(results: Mapping[str, RunResult], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    own, other = ({one.name: one for one in results[name].metrics if one.split == "generated"} for name in MODELS[:2])
    mse = [next(one for one in results[f"{name}-training"].metrics if one.name == "mse") for name in MODELS[:2]]
    table = [["`mse`, val", f"{mse[0].n:,}", f"{mse[0].value:.3f}", f"{mse[1].value:.3f}", "", "", ""]]
    for name in GENERATION:
        control = own[name].controls
        table.append(
            [f"`{name}`", f"{own[name].n:,}", _value(own[name]), _value(other[name]),
             _difference(rows, "generation", "generated", name), _number(control.get("permuted_prompts")),
             _number(control["rendered"])]
        )  # fmt: skip
    head = ["measure", "images", "joint", "generation alone", "difference", "permuted prompts", "rendered"]
    return markdown_table(head, table).splitlines()


def _retrieval(results: Mapping[str, RunResult], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    own, other = (
        {(one.target, one.name): one for one in results[name].metrics if one.probe} for name in ("joint", "alignment")
    )
    table = []
    for inference in INFERENCES:
        for name in MEASURES:
            one = own[inference, name]
            table.append(
                [f"`{inference}`", f"`{name}`", _value(one), _value(other[inference, name]),
                 _difference(rows, "alignment", inference, name), _number(one.controls["chance"]),
                 _number(one.controls["shuffled_images"])]
            )  # fmt: skip
    head = ["inference", "measure", "joint", "alignment alone", "difference", "chance", "shuffled images, joint"]
    return markdown_table(head, table).splitlines()


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}" if abs(value) < 10 else f"{value:,.0f}"


def _value(record: MetricRecord) -> str:
    interval = record.detail.get("interval")
    return _number(record.value) + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def _difference(rows: Sequence[Mapping[str, Any]], model: str, target: str, name: str) -> str:
    for row in rows:
        if (row["model"], row["target"], row["name"]) == (model, target, name):
            return f"{row['estimate']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    return ""


def write(found: Mapping[str, Path], trainings: Mapping[str, Path]) -> None:
    """Copy results, and write differences and the tables of the page.

    Args:
        found: model -> result of its evaluation.
        trainings: model -> folder of its training.
    """
    from diffprobe.evaluation.joint import SAMPLES_FILE

    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        shutil.copyfile(found[name], RESULTS / f"{name}.json")
        shutil.copyfile(trainings[name] / RESULT_FILE, RESULTS / f"{name}-training.json")
    samples = {name: json.loads(path.with_name(SAMPLES_FILE).read_text("utf-8")) for name, path in found.items()}
    rows = differences(samples)
    (RESULTS / DIFFERENCES).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    from record_demo import with_table  # type: ignore[import-not-found]

    text = PAGE.read_text("utf-8")
    for marker, lines in tables(recorded(), rows).items():
        text = with_table(text, marker, lines)
    PAGE.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluation", action="append", default=[], help="setting of scenes/diffdis_joint/evaluate")
    parser.add_argument("settings", nargs="*", help="settings of each training")
    args = parser.parse_args(arguments)
    trainings = {name: trained(config) for name, config in configs(args.settings).items()}
    write({name: measured(folder, args.evaluation) for name, folder in trainings.items()}, trainings)


if __name__ == "__main__":
    main()
