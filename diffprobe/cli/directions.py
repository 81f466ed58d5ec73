"""``diffprobe directions``: directions from a store of prompt latents, as paired mean differences."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_keys, parse_keys

if TYPE_CHECKING:
    from diffprobe.core.result import RunResult

GROUP = "meaning"
HELP = "directions from prompts, as paired mean differences"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the store, the settings and the output folder."""
    parser.add_argument("store", metavar="STORE", help="folder of a feature store that was made from prompts")
    add_keys(
        parser,
        "settings: target=ATTRIBUTE positive=VALUE negative=VALUE context=ATTRIBUTE, and those of the documentation",
    )
    parser.add_argument("--output", default="runs", metavar="FOLDER", help="folder of runs (default: runs)")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print norm and reliability of each direction."""
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
    print(f"directions: {path.parent / 'probes'}")
    print(f"result: {path}")
    return 0


def _table(result: "RunResult") -> list[str]:
    from diffprobe.core.columns import aligned

    heads = {"norm": "norm", "split_half_contexts": "split_half contexts", "split_half_seeds": "split_half seeds",
             "held_out_pairs": "held-out pairs"}  # fmt: skip
    cells: dict[str, dict[str, str]] = {}
    for record in result.metrics:
        ends = record.detail.get("range_over_halves")
        shown = f"{record.value:.3f}" + (f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else "")
        cells.setdefault(record.cell or "text encoder", {})[record.name] = shown
    rows = [[name, *(row.get(metric, "") for metric in heads)] for name, row in cells.items()]
    return aligned([["cell", *heads.values()], *rows], [False, True, True, True, True])
