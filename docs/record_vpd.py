"""Keep the results of VPD on scenes-sd beside the documentation, and write the tables of docs/users/vpd.md from them.

    python docs/record_vpd.py runs

Takes the results below RUNS/scenes/vpd*, by task and switch, and counts the activations that a training step holds with
and without a second computation. Without RUNS the tables are written anew from what is kept.
"""

import argparse
import dataclasses
import json
from pathlib import Path

from diffprobe.core.digest import digest_json
from diffprobe.core.result import MetricRecord, RunResult, read_result, write_result

ROOT = Path(__file__).parent
RESULTS = ROOT / "results/scenes-sd/vpd"
PAGE = ROOT / "users/vpd.md"
ROWS = {
    "segmentation": ("finetune", "adapter", "frozen"),
    "referring": ("finetune",),
    "depth": ("finetune",),
}  # fmt: skip
METRICS = {"segmentation": "miou_pooled", "referring": "oiou", "depth": "rmse"}
HELD, DIFFFEED = "held.json", "difffeed.json"


def collect(runs: Path) -> None:
    """Copy the results of all runs, as TASK-SWITCH.json, and count what a step holds."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for path in sorted(runs.glob("scenes/vpd*/*/result.json")):
        config = read_result(path).config
        if config["recipe"] == "vpd":
            keep(path, RESULTS / f"{config['task']}-{config['switch']}.json")
    for path in sorted(runs.glob("scenes/difffeed/*/result.json")):
        keep(path, RESULTS / DIFFFEED)
    (RESULTS / HELD).write_text(json.dumps(held_bytes(), indent=2) + "\n")


def keep(path: Path, to: Path) -> None:
    """Copy a result; the folder of the output, which changes nothing, becomes `runs`."""
    result = read_result(path)
    config = {**result.config, "output": "runs"}
    write_result(dataclasses.replace(result, config=config, config_digest=digest_json(config)), to)


def held_bytes(batch: int = 16) -> dict[str, int]:
    """Return the bytes of activations that a step of the adapter holds in the denoiser, by `checkpointing`."""
    import torch

    from diffprobe.backbones.base import LoadOptions
    from diffprobe.backbones.differentiable import DifferentiableBackbone, HeldBytes, cross_attentions, readable
    from diffprobe.backbones.families import describe
    from diffprobe.backbones.loading import load_whole
    from diffprobe.backbones.locate import locate
    from diffprobe.probes.dense.vpd import pyramid_taps

    checkpoint = locate("scenes-sd")
    family, spec = describe(checkpoint, None)
    found = {"batch": batch}
    for checkpointing in (False, True):
        backbone = load_whole(checkpoint, family, spec, LoadOptions())
        reader = DifferentiableBackbone(
            backbone, spec, taps=pyramid_taps(list(readable(spec))), attention=cross_attentions(spec),
            checkpointing=checkpointing,
        )  # fmt: skip
        width = backbone.denoiser.config.cross_attention_dim  # type: ignore[union-attr]
        states = torch.zeros(batch, 5, int(width), requires_grad=True)  # type: ignore[arg-type]
        x = torch.zeros(batch, *spec.latent_shape)
        with HeldBytes(backbone.denoiser) as held:
            reader(x, torch.ones(batch, dtype=torch.long), {"encoder_hidden_states": states})
        found[f"checkpointing_{str(checkpointing).lower()}"] = held.total
    return found


def results() -> dict[tuple[str, str], RunResult]:
    """Return the results that are kept, by task and switch."""
    found = {}
    for task, switches in ROWS.items():
        for switch in switches:
            path = RESULTS / f"{task}-{switch}.json"
            if path.exists():
                found[task, switch] = read_result(path)
    return found


def record_of(result: RunResult) -> MetricRecord:
    """Return the test record of the main metric of a task."""
    name = METRICS[result.config["task"]]
    return next(record for record in result.metrics if record.split == "test" and record.name == name)


def score_table() -> list[str]:
    """Return the table of all heads beside their controls."""
    lines = [
        "| task | head | metric | score | minus frozen | minus random denoiser |",
        "|---|---|---|---|---|---|",
    ]
    for (task, _), result in results().items():
        record = record_of(result)
        low, high = record.detail["interval"]
        cells = []
        for control in ("frozen", "random_weights"):
            if control in record.detail["differences"]:
                value, down, up = record.detail["differences"][control]
                cells.append(f"{value:+.3f} [{down:+.3f}, {up:+.3f}]")
            else:
                cells.append("")
        score = f"{record.value:.3f} [{low:.3f}, {high:.3f}]"
        lines.append(f"| {task} | `{record.probe}` | `{record.name}` | {score} | {cells[0]} | {cells[1]} |")
    return lines


def class_table() -> list[str]:
    """Return the IoU of each class, of the switches, each on the model and on a random denoiser."""
    columns: dict[str, dict[str, float]] = {}
    for (task, _), result in results().items():
        if task == "segmentation":
            record = record_of(result)
            columns[f"`{record.probe}`"] = record.detail["iou"]
            columns[f"`{record.probe}`, random"] = record.detail["control_iou"]["random_weights"]
    lines = ["| class | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in next(iter(columns.values())):
        lines.append(f"| {name} | " + " | ".join(f"{own[name]:.3f}" for own in columns.values()) + " |")
    return lines


def held_line() -> str:
    """Return the sentence on memory."""
    held = json.loads((RESULTS / HELD).read_text())
    plain, again = (held[f"checkpointing_{value}"] / 2**20 for value in ("false", "true"))
    return (
        f"With scenes-sd and {held['batch']} images the denoiser holds {plain:.1f} MiB of activations for the backward "
        f"pass of the adapter, and {again:.1f} MiB with `checkpointing=true`."
    )


def difffeed_table() -> list[str]:
    """Return the accuracy of DifFeed beside its controls."""
    if not (RESULTS / DIFFFEED).exists():
        return ["No result is recorded yet."]
    lines = ["| classifier | accuracy | DifFeed minus it |", "|---|---|---|"]
    record = next(one for one in read_result(RESULTS / DIFFFEED).metrics if one.split == "test")
    low, high = record.detail["interval"]
    lines.append(f"| DifFeed | {record.value:.3f} [{low:.3f}, {high:.3f}] | |")
    for control, value in record.controls.items():
        difference, down, up = record.detail["differences"][control]
        lines.append(f"| `{control}` | {value:.3f} | {difference:+.3f} [{down:+.3f}, {up:+.3f}] |")
    return lines


def blocks() -> dict[str, list[str]]:
    """Return the parts of the page that are written, by name."""
    return {"scores": score_table(), "classes": class_table(), "held": [held_line()], "difffeed": difffeed_table()}


def main() -> None:
    """Collect results where runs are given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="?")
    arguments = parser.parse_args()
    if arguments.runs is not None:
        collect(arguments.runs)
    text = PAGE.read_text()
    for name, lines in blocks().items():
        start, end = f"<!-- {name}:start -->\n", f"<!-- {name}:end -->"
        head, rest = text.split(start)
        _, tail = rest.split(end)
        text = head + start + "\n".join(lines) + "\n" + end + tail
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
