"""``diffprobe steer``: generate images with a direction, latents or neurons edited, and measure what moves."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_keys, parse_keys

if TYPE_CHECKING:
    from diffprobe.analysis.dose_response import Dose
    from diffprobe.analysis.statistics import Interval

GROUP = "meaning"
HELP = "generate images with a direction, latents or neurons edited"
STAYS = "the latents of finished edits are on disk"
"""What a command that was stopped continues from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is steered, the settings and the output folder."""
    parser.add_argument(
        "subject", metavar="FOLDER", help="a saved direction, below probes/ of a run; or an sae run, with latent=NUMBER"
    )
    add_keys(parser, "settings: generator=FOLDER, store=FOLDER, prompts=[PROMPT], and those of the documentation")
    parser.add_argument("--output", default="runs", metavar="FOLDER", help="folder of runs (default: runs)")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print the dose-response of the edit and of its controls."""
    from diffprobe.core.columns import aligned
    from diffprobe.evaluation.steer import GRID_FILE, OWN, TABLE_FILE, SteerConfig, steer, unit_of

    config = parse_keys(args.keys, SteerConfig)
    if args.check:
        print("the configuration is valid")
        return 0
    found, path = steer(args.subject, config, output=args.output)
    along = list(found.doses[OWN][0].moved)
    heads = ["steered", "strength", *(f"moved along {name}" if name != OWN else "moved" for name in along), "distance"]
    rows = [_row(name, dose) for name, doses in found.doses.items() for dose in doses]
    print("\n".join(aligned([heads, *rows], [False] + [True] * (len(heads) - 1))))
    print(f"strength: {unit_of(config)}")
    print("moved: in standard deviations of the store's samples along the direction, relative to strength 0")
    print("distance: from the store's samples, as a multiple of the distance among them")
    for note in found.notes:
        print(f"note: {note}")
    print(f"result: {path}")
    print(f"table: {path.with_name(TABLE_FILE)}")
    print(f"images: {path.with_name(GRID_FILE)}")
    return 0


def _row(name: str, dose: "Dose") -> list[str]:
    return [name, f"{dose.strength:+g}", *(_shown(value, "+.2f") for value in dose.moved.values()),
            _shown(dose.distance, ".2f")]  # fmt: skip


def _shown(value: "Interval | float", form: str) -> str:
    if isinstance(value, float):
        return format(value, form)
    return f"{value.estimate:{form}} [{value.low:{form}}, {value.high:{form}}]"
