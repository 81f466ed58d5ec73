"""``diffprobe directions``: directions from a store of prompt latents, as paired differences or self-discovered."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_keys, parse_keys

if TYPE_CHECKING:
    from diffprobe.core.result import RunResult

GROUP = "meaning"
HELP = "directions from prompts: paired differences, or self-discovered"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the store, the settings and the output folder."""
    parser.add_argument("store", metavar="STORE", help="folder of a feature store that was made from prompts")
    add_keys(
        parser,
        "settings: target=ATTRIBUTE positive=VALUE negative=VALUE context=ATTRIBUTE, and those of the documentation",
    )
    parser.add_argument(
        "--self-discovered", action="store_true",
        help="optimise a vector through the frozen model instead (keys: model=MODEL cell=CELL and those above)",
    )  # fmt: skip
    parser.add_argument("--output", default="runs", metavar="FOLDER", help="folder of runs (default: runs)")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print norm and reliability of each direction."""
    if args.self_discovered:
        return _self_discovered(args)
    from diffprobe.evaluation.prompt_directions import PromptDirectionConfig, make_directions

    config = parse_keys(args.keys, PromptDirectionConfig)
    if args.check:
        print("the configuration is valid")
        return 0
    from diffprobe.core.result import read_result

    path = make_directions(args.store, config, output=args.output, announce=lambda line: print(f"note: {line}"))
    result = read_result(path)
    print("\n".join(_table(result)))
    first = result.metrics[0].detail
    print(f"{first['contexts']} contexts x {first['seeds']} seeds; split_half: cosine of the directions of two halves, "
          "with its range over random halves")  # fmt: skip
    print("held-out pairs: share that the direction of the other contexts puts in the right order; chance is 0.5")
    print(*_images_table(result), sep="\n", end="")
    print(f"directions: {path.parent / 'probes'}")
    print(f"result: {path}")
    return 0


def _self_discovered(args: argparse.Namespace) -> int:
    from diffprobe.evaluation.self_discovered import SelfDiscoveredConfig, make_self_discovered

    config = parse_keys(args.keys, SelfDiscoveredConfig)
    if args.check:
        print("the configuration is valid")
        return 0
    from diffprobe.core.result import read_result

    path = make_self_discovered(args.store, config, output=args.output)
    norm, error = read_result(path).metrics
    print(f"{norm.cell}: norm {norm.value:.3f}, from {norm.n} latents")
    without = error.controls["without_vector"]
    print(f"denoising error of {error.n} held-out latents: {error.value:.4f}, without the vector {without:.4f}")
    print(f"directions: {path.parent / 'probes'}")
    print(f"result: {path}")
    return 0


def _table(result: "RunResult") -> list[str]:
    from diffprobe.core.columns import aligned

    heads = {"norm": "norm", "split_half_contexts": "split_half contexts", "split_half_seeds": "split_half seeds",
             "held_out_pairs": "held-out pairs"}  # fmt: skip
    cells: dict[str, dict[str, str]] = {}
    for record in (record for record in result.metrics if record.name != "auroc"):
        ends = record.detail.get("range_over_halves")
        shown = f"{record.value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
        cells.setdefault(record.cell or "text encoder", {})[record.name] = shown
    rows = [[name, *(row.get(metric, "") for metric in heads)] for name, row in cells.items()]
    return aligned([["cell", *heads.values()], *rows], [False, True, True, True, True])


def _images_table(result: "RunResult") -> list[str]:
    """Return the AUROC on images, each with its interval and its baselines; empty where none was scored."""
    from diffprobe.core.columns import aligned

    records = [record for record in result.metrics if record.name == "auroc"]
    if not records:
        return []
    names = list(dict.fromkeys(name for record in records for name in record.controls))
    rows = [["cell", "auroc on images", *(f"minus {name}" for name in names), "p"]]
    for record in records:
        low, high = record.detail["interval"]
        row = [record.cell or "", f"{record.value:.3f} [{low:.3f}, {high:.3f}]"]
        for name in names:
            difference = record.detail["differences"].get(name)
            shown = f"{record.value - record.controls[name]:+.3f}" if name in record.controls else "-"
            row.append(f"{shown} [{difference[1]:+.3f}, {difference[2]:+.3f}]" if difference else shown)
        rows.append([*row, f"{record.detail['p_random_direction']:.3f}"])
    first = records[0]
    note = (
        f"{first.n} images of '{first.split}', {first.detail['groups']} groups ({first.detail['group_by']}); p against "
        f"random directions is at least {first.detail['smallest_p']:.3f}"
    )
    return ["", *aligned(rows, [False, *[True] * (len(rows[0]) - 1)]), note, ""]
