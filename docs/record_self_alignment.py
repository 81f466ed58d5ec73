"""Train flow models of scenes with and without self-representation alignment, and compare what is read of them.

    python docs/record_self_alignment.py --seeds 0 1 2 --readouts data.path=data/scenes32 -- trainer.max_steps=1000

A teacher's pass makes a step longer, so alignment is compared with plain training at equal steps and at equal compute.
Linear classifiers of scenes_flow/readouts then read each model's blocks, on the same images and with the same noise. A
repeated command keeps finished trainings and continues an interrupted one. Settings after `--` go to each training.
The results go to a JSON file, and are printed as tables. With `--page` nothing is trained: the tables of
docs/users/flow.md are made from the finished file.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import bootstrap_interval, mean_of
from diffprobe.config.compose import load, load_run
from diffprobe.core.atomic_file import atomic_file
from diffprobe.core.result import RESULT_FILE, read_result
from diffprobe.probes.predictions import Predictions
from diffprobe.runs import rescore

sys.path.insert(0, str(Path(__file__).resolve().parent))
from finished_runs import probed, trained
from page_tables import with_table

DOCS = Path(__file__).resolve().parent
OUT = DOCS / "results" / "self-alignment.json"
PAGE = DOCS / "users" / "flow.md"
MARKERS = ("<!-- table: self-alignment, factors -->\n", "<!-- table: self-alignment, blocks -->\n")
PLAIN, STEPS, COMPUTE = "plain", "equal steps", "equal compute"
MODELS = (PLAIN, STEPS, COMPUTE)
N_RESAMPLES = 2000


def passes_of(config: Any) -> float:
    """Return the passes of a step of an aligned training by those of a plain one; a backward pass counts as two."""
    return (3 + (config.self_alignment.teacher_block + 1) / config.transformer.layers) / 3


def config_of(model: str, seed: int, settings: Sequence[str]) -> Any:
    """Return the training of a model; at equal compute its steps are divided by the passes of a step."""
    name = "train_flow" if model == PLAIN else "train_flow_sra"
    config: Any = load(f"scenes/{name}", [f"seed={seed}", *settings])
    if model != COMPUTE:
        return config
    return replace(
        config, trainer=replace(config.trainer, max_steps=round(config.trainer.max_steps / passes_of(config)))
    )


def readout_of(folder: Path, readouts: Sequence[str]) -> Any:
    """Return the classifiers of the blocks of a finished training."""
    settings = [f"backbone.path={folder / 'weights'}", "features.source=live", "features.taps=[transformer_blocks.*]"]
    return load_run("scenes_flow/readouts", [*settings, *readouts])


def correct(predictions: Predictions) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Return (target, tap) -> for each image the share of timesteps at which it is classified correctly."""
    found: dict[tuple[str, str], list[NDArray[np.float64]]] = {}
    for index, head in enumerate(predictions.heads):
        if head.control == "none":
            tap = str(head.cell).partition("@")[0]
            hits = predictions.of("predicted", index).long() == predictions.truth(index)
            found.setdefault((str(head.target), tap), []).append(hits.double().numpy())
    return {key: np.mean(hits, axis=0) for key, hits in found.items()}


def compared(
    plain: Sequence[NDArray[np.float64]], other: Sequence[NDArray[np.float64]], images: Sequence[str]
) -> dict[str, Any]:
    """Return the difference of accuracies, of each seed and with an interval of the mean, which resamples images.

    Args:
        plain, other: per seed, how often each image is classified correctly.
        images: their keys.
    """
    by_seed = [float((b - a).mean()) for a, b in zip(plain, other, strict=True)]
    mean = np.mean(np.stack(other) - np.stack(plain), axis=0)
    interval = bootstrap_interval(mean_of(mean), list(images), n_resamples=N_RESAMPLES, seed=0)
    return {"difference": statistics.mean(by_seed), "interval": [interval.low, interval.high], "by_seed": by_seed}


def measure(seeds: Sequence[int], settings: Sequence[str], readouts: Sequence[str]) -> dict[str, Any]:
    """Train and read all models; return what the JSON file holds."""
    hits: dict[str, list[dict[tuple[str, str], NDArray[np.float64]]]] = {model: [] for model in MODELS}
    tree: dict[str, Any] = {
        "seeds": list(seeds), "settings": list(settings), "readouts": list(readouts), "models": {}
    }  # fmt: skip
    keys: tuple[str, ...] = ()
    for model in MODELS:
        errors, steps = [], set()
        for seed in seeds:
            config = config_of(model, seed, settings)
            folder = trained(config)
            errors += [one.value for one in read_result(folder / RESULT_FILE).metrics if one.name == "mse"]
            steps.add(config.trainer.max_steps)
            read = probed(readout_of(folder, readouts))
            predictions = rescore.load_run(read, "test").predictions
            if keys and predictions.keys != keys:
                raise SystemExit(f"'{read}' has other test images than the first run.")
            keys = predictions.keys
            hits[model].append(correct(predictions))
        tree["models"][model] = {"steps": steps.pop(), "mse": errors}
    tree["images"] = len(keys)
    tree["accuracy"] = [
        entry(hits, keys, target=target, tap=tap) for target, tap in parts(hits[PLAIN][0])
    ]  # fmt: skip
    return tree


def parts(hits: Mapping[tuple[str, str], Any]) -> list[tuple[str | None, str | None]]:
    """Return what accuracies are given of: each target over all blocks, each block over all targets, and all."""
    targets, taps = (dict.fromkeys(key[i] for key in hits) for i in (0, 1))
    return [*((target, None) for target in targets), *((None, tap) for tap in taps), (None, None)]


def entry(
    hits: Mapping[str, Sequence[Mapping[tuple[str, str], NDArray[np.float64]]]],
    keys: Sequence[str],
    *,
    target: str | None,
    tap: str | None,
) -> dict[str, Any]:
    """Return the accuracy of plain models, and the differences of the others, of one part."""

    def of(model: str) -> list[NDArray[np.float64]]:
        return [
            np.mean([v for (a, b), v in seed.items() if target in (None, a) and tap in (None, b)], axis=0)
            for seed in hits[model]
        ]

    plain = of(PLAIN)
    found = {model: compared(plain, of(model), keys) for model in MODELS if model != PLAIN}
    return {"target": target, "block": tap, PLAIN: [float(one.mean()) for one in plain], **found}


def lines(entries: Sequence[Mapping[str, Any]], title: str, key: str) -> list[str]:
    """Return a Markdown table in %: accuracy of plain models with its range over seeds, then the differences.

    Args:
        entries: the parts that are shown.
        title: heading of the first column.
        key: what names a part, "target" or "block"; None is all of them.
    """
    found = [f"| {title} | plain | " + " | ".join(model for model in MODELS[1:]) + " |", "| :-- |" + " --: |" * 3]
    for one in entries:
        values = [100 * value for value in one[PLAIN]]
        cells = [f"{statistics.mean(values):.1f} [{min(values):.1f}, {max(values):.1f}]"]
        for model in MODELS[1:]:
            low, high = one[model]["interval"]
            seeds = ", ".join(f"{100 * value:+.1f}" for value in one[model]["by_seed"])
            cells.append(f"{100 * one[model]['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] ({seeds})")
        name = "all" if one[key] is None else f"`{one[key]}`" if key == "block" else one[key]
        found.append(f"| {name} | " + " | ".join(cells) + " |")
    return found


def tables(tree: Mapping[str, Any]) -> list[list[str]]:
    """Return the lines of two Markdown tables: a row per factor, and a row per block."""
    of_target = [one for one in tree["accuracy"] if one["block"] is None]
    of_block = [one for one in tree["accuracy"] if one["block"] is not None]
    return [lines(of_target, "factor", "target"), lines(of_block, "block", "block")]


def with_tables(text: str, tree: Mapping[str, Any]) -> str:
    """Return a page with the tables below their markers made again; without a marker a table is left out."""
    for marker, table in zip(MARKERS, tables(tree), strict=True):
        if marker in text:
            text = with_table(text, marker, table)
    return text


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--readouts", action="append", default=[], help="setting of scenes_flow/readouts")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--page", action="store_true", help="write the page from the finished file of --out")
    parser.add_argument("settings", nargs="*", help="settings of each training; trainer.max_steps is required")
    args = parser.parse_args(arguments)
    if args.page:
        tree = json.loads(args.out.read_text("utf-8"))
        PAGE.write_text(with_tables(PAGE.read_text("utf-8"), tree), encoding="utf-8")
        return
    if config_of(PLAIN, 0, args.settings).trainer.max_steps < 1:
        parser.error("trainer.max_steps is not set: equal compute divides it.")
    tree = measure(args.seeds, args.settings, args.readouts)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(args.out) as temporary:
        temporary.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    for table in tables(tree):
        print("\n".join(table), end="\n\n")


if __name__ == "__main__":
    main()
