"""Train and measure self-guided diffusion on scenes over seeds, and write docs/results/self-guided.json.

    python docs/record_self_guided.py --seeds 0 1 2 --parts clusters described random conditions

`clusters` trains the first stage and compares its clusters with labels; `described` does so with the gradient of the
clusters in the denoiser; `random` adds prototypes of a random network; `conditions` trains the second stage
and its label-conditioned counterpart, and compares the images of all denoisers. A repeated command keeps finished runs
and evaluations, and continues an interrupted run. Settings after `--` go to each training (`trainer.max_steps=500`).
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffprobe.config.compose import load
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.result import RunResult, read_result

sys.path.insert(0, str(Path(__file__).resolve().parent))
from finished_runs import evaluated, trained

PAGE = Path(__file__).parent / "users/self-guided.md"
OUT = Path(__file__).parent / "results/self-guided.json"
PARTS = ("clusters", "described", "random", "conditions")
FORMS = ("released", "described")
CONTROLS = ("random_network", "kmeans_features", "kmeans_random_network", "kmeans_pixels", "shuffled_labels")
QUALITY = ("frechet_distance", "precision", "recall", "density", "coverage")
NAMES = {
    "unconditional": "unconditional", "clusters": "clusters", "described": "unconditional, described form",
    "described_clusters": "clusters, described form", "labels": "roles", "rendered": "rendered scenes",
}  # fmt: skip
BASELINE = "unconditional"
"""The condition from which the others differ by what is shown."""


def stage(name: str, settings: Sequence[str]) -> Path:
    """Return the folder of a run of an experiment of scenes, trained now unless it is finished."""
    return trained(load(f"scenes/{name}", list(settings)))


def measure_clusters(run: Path, random_run: Path | None, settings: Sequence[str]) -> RunResult:
    """Return the comparison of clusters and labels, made now unless it is there."""
    from diffprobe.evaluation.clusters import evaluate_clusters

    config: Any = load("scenes/clusters", [f"run={run}", *settings])
    config = replace(config, random_run=None if random_run is None else str(random_run))
    return read_result(evaluated(config, evaluate_clusters))


def measure_images(run: Path, settings: Sequence[str]) -> dict[str, float]:
    """Return the measures of the images of one denoiser, and of rendered ones with `rendered_` before their names."""
    from diffprobe.evaluation.long_tail import evaluate_long_tail

    config: Any = load("scenes/long_tail/evaluate", [f"run={run}", "overlap_images=0", *settings])
    records = [one for one in read_result(evaluated(config, evaluate_long_tail)).metrics if one.target == "all"]
    found = {one.name: one.value for one in records if one.name in QUALITY}
    return found | {f"rendered_{one.name}": one.controls["rendered"] for one in records if one.name in QUALITY}


def facts_of(result: RunResult) -> dict[str, Any]:
    """Return the use of prototypes and attribute -> measure -> values, with the intervals of AMI."""
    (usage,) = (record for record in result.metrics if record.name == "effective_prototypes")
    agreements: dict[str, Any] = {}
    for record in result.metrics:
        if record.target is not None:
            values = {"prototypes": record.value, **record.controls}
            values |= {key: record.detail[key] for key in ("interval", "differences") if key in record.detail}
            agreements.setdefault(record.target, {})[record.name] = values
    return {
        "images": usage.n, "effective": usage.value, "used": usage.detail["used"],
        "prototypes": usage.detail["prototypes"], "collapsed": "collapse" in usage.detail,
        "entropy_curve": usage.detail["entropy_curve"], "agreements": agreements,
    }  # fmt: skip


def spread(values: Sequence[float], digits: int = 3, sign: str = "") -> str:
    """Return the mean of values over seeds, with their range if there are several."""
    shown = f"{statistics.mean(values):{sign}.{digits}f}"
    return shown if len(values) == 1 else f"{shown} [{min(values):{sign}.{digits}f}, {max(values):{sign}.{digits}f}]"


def cluster_table(tree: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table: NMI, ARI and AMI of the prototypes by attribute, and AMI of the controls."""
    forms = {form: found for form in FORMS if (found := tree["clusters"].get(form))}
    first = next(iter(forms["released"].values()))
    controls = [name for name in CONTROLS if name in next(iter(first["agreements"].values()))["ami"]]
    head = ["attribute", "NMI", "ARI", "AMI", *(["AMI, described form"] if "described" in forms else [])]
    head += [f"AMI, {name.replace('_', ' ')}" for name in controls]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def over_seeds(form: str, attribute: str, measure: str, what: str = "prototypes") -> str:
        return spread([found["agreements"][attribute][measure][what] for found in forms[form].values()])

    for attribute in sorted(first["agreements"]):  # as the file has them
        numbers = [over_seeds("released", attribute, measure) for measure in ("nmi", "ari", "ami")]
        numbers += [over_seeds("described", attribute, "ami")] if "described" in forms else []
        numbers += [over_seeds("released", attribute, "ami", name) for name in controls]
        lines.append("| " + " | ".join([attribute, *numbers]) + " |")
    return lines


def counts_line(tree: Mapping[str, Any]) -> str:
    """Return of how many attributes and seeds the AMI is above, and below, that of each control with its interval."""
    parts = []
    found = [values["ami"] for run in tree["clusters"]["released"].values() for values in run["agreements"].values()]
    for name in CONTROLS:
        intervals = [values["differences"][name] for values in found if name in values.get("differences", {})]
        if intervals:
            above, below = sum(low > 0 for low, _ in intervals), sum(high < 0 for _, high in intervals)
            parts.append(f"{name.replace('_', ' ')} {above} above and {below} below of {len(intervals)}")
    return f"AMI of the released form against each control, by attribute and seed: {'; '.join(parts)}."


def condition_table(tree: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of conditions, as differences from the unconditional denoiser paired by seed.

    A condition that some seeds lack, whose clusters collapsed, is that of the seeds in its name.
    """
    if not tree.get("conditions"):
        return []
    head = ["condition", "Frechet distance", "precision", "recall", "density", "coverage"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    by_seed = tree["conditions"]
    baseline = {name: {seed: found[BASELINE][name] for seed, found in by_seed.items()} for name in QUALITY}
    lines.append(_row(BASELINE, [list(baseline[name].values()) for name in QUALITY]))
    for condition in [name for name in NAMES if name != BASELINE]:
        having = {seed: found[condition] for seed, found in by_seed.items() if condition in found}
        if having:
            seeds = "" if len(having) == len(by_seed) else f" (seed {', '.join(having)})"
            paired = [[found[name] - baseline[name][seed] for seed, found in having.items()] for name in QUALITY]
            lines.append(_row(condition, paired, "+", seeds))
    rendered = [[found[BASELINE][f"rendered_{name}"] for found in by_seed.values()] for name in QUALITY]
    lines.append(_row("rendered", rendered))
    return lines


def _row(condition: str, values: Sequence[Sequence[float]], sign: str = "", seeds: str = "") -> str:
    shown = [spread(values[0], 1, sign), *(spread(one, 3, sign) for one in values[1:])]
    return "| " + " | ".join([NAMES[condition] + seeds, *shown]) + " |"


def settings_lines(tree: Mapping[str, Any]) -> list[str]:
    """Return the command and the sizes of the recorded results."""
    options = [f"--clusters {one}" for one in tree.get("clusters_settings", [])]
    options += [f"--images {one}" for one in tree.get("images_settings", [])]
    seeds = " ".join(str(seed) for seed in tree["seeds"])
    command = ["python docs/record_self_guided.py --seeds", seeds, "--parts", *tree["parts"], *options, "--"]
    lines = ["    " + " ".join([*command, *tree["settings"]]), ""]
    for form, runs in tree["clusters"].items():
        first = next(iter(runs.values()))
        used = ", ".join(
            f"{found['used']} ({found['effective']:.1f} effectively{'; collapsed' if found['collapsed'] else ''})"
            for found in runs.values()
        )
        lines.append(
            f"{form.capitalize()} form: seeds {', '.join(runs)}; {first['images']:,} test images; of "
            f"{first['prototypes']} prototypes are used {used}."
        )
    return lines


def marked(page: str, name: str, lines: Sequence[str] | None = None) -> str:
    """Return what is between the marks of a part of the page; with lines, the page with them in its place."""
    before, start, rest = page.partition(f"<!-- {name} -->")
    inside, end, after = rest.partition(f"<!-- end of {name} -->")
    if lines is None:
        return inside.strip("\n")
    body = "\n".join(["", *lines, ""]) if lines else "\n"
    return "".join([before, start, body, end, after])


def parts_of_page(tree: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the lines of each part of the page."""
    clusters = [*cluster_table(tree), "", counts_line(tree)]
    return {"settings": settings_lines(tree), "clusters": clusters, "conditions": condition_table(tree)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and write the results; print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument("--clusters", action="append", default=[], help="setting of scenes/clusters")
    parser.add_argument("--images", action="append", default=[], help="setting of scenes/long_tail/evaluate")
    parser.add_argument("settings", nargs="*", help="settings of each training")
    args = parser.parse_args(arguments)
    tree: dict[str, Any] = {
        "settings": list(args.settings), "seeds": args.seeds, "parts": [one for one in PARTS if one in args.parts],
        "clusters_settings": args.clusters, "images_settings": args.images, "clusters": {}, "conditions": {},
    }  # fmt: skip
    for seed in args.seeds:
        measure_seed(tree, seed, args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(args.out) as temporary:
            temporary.write_text(json.dumps(tree, indent=1, sort_keys=True) + "\n", "utf-8")
    if args.out == OUT:
        write_page(tree)
    print("\n".join([*cluster_table(tree), "", *condition_table(tree)]))


def measure_seed(tree: dict[str, Any], seed: int, args: argparse.Namespace) -> None:
    """Train and measure all parts with one seed, and add them to the tree."""
    output = f"output={args.runs}"
    settings = [*args.settings, output, f"seed={seed}"]
    first = {"released": stage("train_self_guided", settings)}
    random = None
    if "random" in args.parts:
        random = stage("train_self_guided", [*settings, "prototypes.random_network=true"])
    if "described" in args.parts:
        first["described"] = stage("train_self_guided", [*settings, "prototypes.form=described"])
    for form, run in first.items():
        result = measure_clusters(run, random if form == "released" else None, [*args.clusters, output])
        tree["clusters"].setdefault(form, {})[str(seed)] = facts_of(result)
    if "conditions" in args.parts:
        runs = {"unconditional": first["released"], "labels": stage("train_label_conditioned", settings)}
        for form, run in first.items():
            if not tree["clusters"][form][str(seed)]["collapsed"]:  # the second stage refuses such clusters
                name = "clusters" if form == "released" else "described_clusters"
                runs[name] = stage("train_cluster_conditioned", [*settings, f"classes.clusters={run}"])
            if form == "described":
                runs["described"] = run
        tree["conditions"][str(seed)] = {
            name: measure_images(run, [*args.images, output]) for name, run in runs.items()
        }


def write_page(tree: Mapping[str, Any]) -> None:
    """Write the parts of the page."""
    page = PAGE.read_text("utf-8")
    for name, lines in parts_of_page(tree).items():
        page = marked(page, name, lines)
    with atomic_file(PAGE) as temporary:
        temporary.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
