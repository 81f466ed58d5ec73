"""Train and measure self-guided diffusion on scenes, and write docs/results/self-guided.json.

    python docs/record_self_guided.py --parts clusters random conditions

`clusters` trains the first stage and compares its clusters with labels; `random` adds prototypes of a random network as
a control; `conditions` trains the second stage and its label-conditioned counterpart, and compares the images of all
three denoisers. A repeated command keeps finished runs and continues an interrupted one. Settings after `--` go to each
training (`trainer.max_steps=500`).
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffprobe.config.compose import load
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.result import RESULT_FILE, RunResult, read_result

PAGE = Path(__file__).parent / "users/self-guided.md"
OUT = Path(__file__).parent / "results/self-guided.json"
PARTS = ("clusters", "random", "conditions")
CONTROLS = ("random_network", "kmeans_features", "kmeans_random_network", "kmeans_pixels", "shuffled_labels")
QUALITY = ("frechet_distance", "precision", "recall", "density", "coverage")
NAMES = {"unconditional": "unconditional", "clusters": "clusters", "labels": "roles", "rendered": "rendered scenes"}


def trained(name: str, settings: Sequence[str]) -> Path:
    """Return the folder of a finished run, trained now unless it is there."""
    from diffprobe.runs.train_generative import run_dir_of, train_generative

    config: Any = load(f"scenes/{name}", list(settings))
    folder = run_dir_of(config)
    return folder if (folder / RESULT_FILE).is_file() else train_generative(config).parent


def measure_clusters(run: Path, random_run: Path | None, settings: Sequence[str]) -> RunResult:
    """Return the comparison of clusters and labels."""
    from diffprobe.evaluation.clusters import evaluate_clusters

    config: Any = load("scenes/clusters", [f"run={run}", *settings])
    return read_result(evaluate_clusters(replace(config, random_run=None if random_run is None else str(random_run))))


def measure_images(run: Path, settings: Sequence[str]) -> dict[str, float]:
    """Return the measures of the images of one denoiser, and of rendered ones with `rendered_` before their names."""
    from diffprobe.evaluation.long_tail import evaluate_long_tail

    config: Any = load("scenes/long_tail/evaluate", [f"run={run}", "overlap_images=0", *settings])
    records = [one for one in read_result(evaluate_long_tail(config)).metrics if one.target == "all"]
    found = {one.name: one.value for one in records if one.name in QUALITY}
    return found | {f"rendered_{one.name}": one.controls["rendered"] for one in records if one.name in QUALITY}


def agreements(result: RunResult) -> dict[str, Any]:
    """Return attribute -> measure -> {"prototypes": value, control: value}."""
    found: dict[str, Any] = {}
    for record in result.metrics:
        if record.target is not None:
            values = {"prototypes": record.value, **record.controls}
            found.setdefault(record.target, {})[record.name] = values
    return found


def cluster_table(tree: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of the page: AMI by attribute, NMI and ARI of the prototypes beside it."""
    first = next(iter(tree["agreements"].values()))["ami"]
    controls = [name for name in CONTROLS if name in first]
    head = ["attribute", "NMI", "ARI", "AMI", *(f"AMI, {name.replace('_', ' ')}" for name in controls)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for attribute, found in sorted(tree["agreements"].items()):  # as the file has them
        numbers = [found[name]["prototypes"] for name in ("nmi", "ari", "ami")]
        numbers += [found["ami"][name] for name in controls]
        lines.append("| " + " | ".join([attribute, *(f"{value:.3f}" for value in numbers)]) + " |")
    return lines


def condition_table(tree: Mapping[str, Any]) -> list[str]:
    """Return the lines of the table of conditions, without any before they were measured."""
    if not tree.get("conditions"):
        return []
    lines = ["| condition | Frechet distance | precision | recall | density | coverage |", "|" + "---|" * 6]
    rows = dict(tree["conditions"])
    rows["rendered"] = {name: rows["unconditional"][f"rendered_{name}"] for name in QUALITY}
    for name, found in rows.items():
        shown = [f"{found['frechet_distance']:.2f}", *(f"{found[key]:.3f}" for key in QUALITY[1:])]
        lines.append("| " + " | ".join([NAMES[name], *shown]) + " |")
    return lines


def settings_lines(tree: Mapping[str, Any]) -> list[str]:
    """Return the command and the sizes of the recorded results, one seed."""
    parts = " ".join(tree["parts"])
    options = [f"--clusters {one}" for one in tree.get("clusters_settings", [])]
    options += [f"--images {one}" for one in tree.get("images_settings", [])]
    command = " ".join(["python docs/record_self_guided.py --parts", parts, *options, "--", *tree["settings"]])
    usage = tree["usage"]
    return [
        f"    {command}",
        "",
        f"One seed; {tree['images']:,} test images; {usage['used']} of {usage['prototypes']} prototypes are used, "
        f"{usage['effective']:.1f} effectively.",
    ]


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
    return {"settings": settings_lines(tree), "clusters": cluster_table(tree), "conditions": condition_table(tree)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure and write the results; print their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument("--clusters", action="append", default=[], help="setting of scenes/clusters")
    parser.add_argument("--images", action="append", default=[], help="setting of scenes/long_tail/evaluate")
    parser.add_argument("settings", nargs="*", help="settings of each training")
    args = parser.parse_args(arguments)
    settings, output = list(args.settings), f"output={args.runs}"
    tree: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {}
    tree |= {"settings": settings, "parts": [one for one in PARTS if one in {*tree.get("parts", []), *args.parts}]}
    first = trained("train_self_guided", [*settings, output])
    if {"clusters", "random"} & set(args.parts):
        control = [*settings, output, "prototypes.random_network=true"]
        random = trained("train_self_guided", control) if "random" in args.parts else None
        result = measure_clusters(first, random, [*args.clusters, output])
        (usage,) = (record for record in result.metrics if record.name == "effective_prototypes")
        tree["clusters_settings"] = args.clusters
        tree["images"] = usage.n
        tree["usage"] = {"effective": usage.value, **{key: usage.detail[key] for key in ("used", "prototypes")}}
        tree["entropy_curve"] = usage.detail["entropy_curve"]
        tree["agreements"] = agreements(result)
    if "conditions" in args.parts:
        of_clusters = trained("train_cluster_conditioned", [*settings, output, f"classes.clusters={first}"])
        runs = {
            "unconditional": first, "clusters": of_clusters,
            "labels": trained("train_label_conditioned", [*settings, output]),
        }  # fmt: skip
        tree["images_settings"] = args.images
        tree["conditions"] = {name: measure_images(run, [*args.images, output]) for name, run in runs.items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(args.out) as temporary:
        temporary.write_text(json.dumps(tree, indent=2, sort_keys=True) + "\n", "utf-8")
    if args.out == OUT:
        page = PAGE.read_text("utf-8")
        for name, lines in parts_of_page(tree).items():
            page = marked(page, name, lines)
        with atomic_file(PAGE) as temporary:
            temporary.write_text(page, "utf-8")
    print("\n".join([*(cluster_table(tree) if "agreements" in tree else []), "", *condition_table(tree)]))


if __name__ == "__main__":
    main()
