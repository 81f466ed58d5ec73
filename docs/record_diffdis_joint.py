"""Train and evaluate scenes/diffdis_joint at equal compute, and write docs/users/joint-training.md's tables.

    python docs/record_diffdis_joint.py --seeds 0 1 2
    python docs/record_diffdis_joint.py --evaluation n_per_role=5 -- "model.channels=[16,32,48]" trainer.max_steps=400

Settings go to each of the three trainings of a seed; `trainer.max_steps` is that of the joint model, and the steps of
the others follow from the operations of their passes. A repeated command continues: finished runs and evaluations are
kept. Results go to docs/results/diffdis-joint, a folder per seed.
"""

import argparse
import json
import shutil
import statistics
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

Results = Mapping[str, RunResult]
"""Results of one seed: evaluations by model, and trainings by model with the ending `-training`."""


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


def differences(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the joint model minus the model of one task, for each measure with values by image.

    Args:
        samples: of each seed, model -> contents of its `samples.json`; the images of all seeds are the same.
    Returns: rows with `model` (that of one task), `target`, `name`, `estimate`, the mean over seeds, `low` and `high`,
        its 95 % interval from resampling images, the same for all models, and `by_seed`, the difference of each seed.
    """
    rows = []
    for model in MODELS[1:]:
        for target, values in samples[0][model].items():
            for name in values:
                if name == "groups":
                    continue
                own, other = (np.array([one[which][target][name] for one in samples]) for which in ("joint", model))
                clusters = values.get("groups", [str(number) for number in range(own.shape[1])])
                found = paired_interval(
                    mean_of(own.mean(0)), mean_of(other.mean(0)), clusters, n_resamples=N_RESAMPLES, seed=0
                )
                rows.append(
                    {"model": model, "target": target, "name": name, "estimate": found.estimate, "low": found.low,
                     "high": found.high, "by_seed": (own - other).mean(1).tolist()}
                )  # fmt: skip
    return rows


def recorded() -> dict[int, dict[str, RunResult]]:
    """Return the recorded results of each seed."""
    names = [*MODELS, *(f"{name}-training" for name in MODELS)]
    folders = {int(path.name.removeprefix("seed-")): path for path in RESULTS.glob("seed-*")}
    return {seed: {name: read_result(folders[seed] / f"{name}.json") for name in names} for seed in sorted(folders)}


def tables(seeds: Sequence[Results], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the lines of each table of the page by its marker."""
    return {
        "joint-compute": _compute(seeds[0]),
        "joint-generation": _generation(seeds, rows),
        "joint-retrieval": _retrieval(seeds, rows),
    }


def _compute(results: Results) -> list[str]:
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


def _generation(seeds: Sequence[Results], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def of(model: str, name: str) -> list[MetricRecord]:
        split = {"mse": f"{model}-training"}.get(name, model)
        return [next(one for one in results[split].metrics if one.name == name) for results in seeds]

    own, other = (of(name, "mse") for name in MODELS[:2])
    difference = _spread([one.value - two.value for one, two in zip(own, other, strict=True)], sign="+")
    table = [["`mse`, val", f"{own[0].n:,}", _values(own), _values(other), "", difference, "", ""]]
    for name in GENERATION:
        own, other = (of(model, name) for model in MODELS[:2])
        permuted = [one.controls["permuted_prompts"] for one in own if "permuted_prompts" in one.controls]
        rendered = [one.controls["rendered"] for one in own]
        by_seed = [one.value - two.value for one, two in zip(own, other, strict=True)]
        table.append(
            [f"`{name}`", f"{own[0].n:,}", _values(own), _values(other),
             _difference(rows, "generation", "generated", name), _spread(by_seed, sign="+"),
             _spread(permuted) if permuted else "", _spread(rendered)]
        )  # fmt: skip
    head = ["measure", "images", "joint", "generation alone", "difference", "by seed", "permuted prompts", "rendered"]
    return markdown_table(head, table).splitlines()


def _retrieval(seeds: Sequence[Results], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    def of(model: str, inference: str, name: str) -> list[MetricRecord]:
        wanted = (inference, name)
        return [
            next(one for one in results[model].metrics if one.probe and (one.target, one.name) == wanted)
            for results in seeds
        ]

    table = []
    for inference in INFERENCES:
        for name in MEASURES:
            own, other = of("joint", inference, name), of("alignment", inference, name)
            by_seed = [one.value - two.value for one, two in zip(own, other, strict=True)]
            table.append(
                [f"`{inference}`", f"`{name}`", _values(own), _values(other),
                 _difference(rows, "alignment", inference, name), _spread(by_seed, sign="+"),
                 *(_number(statistics.mean(one.controls[key] for one in own)) for key in ("chance", "shuffled_images"))]
            )  # fmt: skip
    head = ["inference", "measure", "joint", "alignment alone", "difference", "by seed", "chance", "shuffled images"]
    return markdown_table(head, table).splitlines()


def _number(value: float, sign: str = "") -> str:
    return f"{value:{sign}.3f}" if abs(value) < 10 else f"{value:{sign},.0f}"


def _values(records: Sequence[MetricRecord]) -> str:
    return _spread([one.value for one in records])


def _spread(values: Sequence[float], sign: str = "") -> str:
    """Return the mean over seeds; with several of them and different values, their range after it."""
    low, high = (_number(one, sign) for one in (min(values), max(values)))
    mean = _number(statistics.mean(values), sign)
    return mean if low == high else f"{mean} ({low} to {high})"


def _difference(rows: Sequence[Mapping[str, Any]], model: str, target: str, name: str) -> str:
    for row in rows:
        if (row["model"], row["target"], row["name"]) == (model, target, name):
            return f"{row['estimate']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
    return ""


def write(found: Mapping[int, Mapping[str, Path]], trainings: Mapping[int, Mapping[str, Path]]) -> None:
    """Copy results, and write differences and the tables of the page.

    Args:
        found: seed -> model -> result of its evaluation.
        trainings: seed -> model -> folder of its training.
    """
    from diffprobe.evaluation.joint import SAMPLES_FILE

    for old in RESULTS.glob("seed-*"):
        shutil.rmtree(old)
    samples = []
    for seed, results in found.items():
        folder = RESULTS / f"seed-{seed}"
        folder.mkdir(parents=True)
        for name in MODELS:
            shutil.copyfile(results[name], folder / f"{name}.json")
            shutil.copyfile(trainings[seed][name] / RESULT_FILE, folder / f"{name}-training.json")
        samples.append({name: json.loads(results[name].with_name(SAMPLES_FILE).read_text("utf-8")) for name in MODELS})
    rows = differences(samples)
    (RESULTS / DIFFERENCES).write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    from record_demo import with_table  # type: ignore[import-not-found]

    text = PAGE.read_text("utf-8")
    for marker, lines in tables(list(recorded().values()), rows).items():
        text = with_table(text, marker, lines)
    PAGE.write_text(text, encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of the trainings")
    parser.add_argument("--evaluation", action="append", default=[], help="setting of scenes/diffdis_joint/evaluate")
    parser.add_argument("settings", nargs="*", help="settings of each training")
    args = parser.parse_args(arguments)
    trainings: dict[int, dict[str, Path]] = {}
    found: dict[int, dict[str, Path]] = {}
    for seed in args.seeds:
        chosen = configs([*args.settings, f"seed={seed}"])
        trainings[seed] = {name: trained(config) for name, config in chosen.items()}
        found[seed] = {name: measured(folder, args.evaluation) for name, folder in trainings[seed].items()}
    write(found, trainings)


if __name__ == "__main__":
    main()
