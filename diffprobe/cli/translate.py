"""``diffprobe translate``: make a direction from two prompts, without labels."""

import argparse

from diffprobe.cli.arguments import add_check, add_keys, parse_keys

GROUP = "meaning"
HELP = "make a direction from two prompts by a caption regressor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the settings."""
    parser.add_argument("run", metavar="RUN", help="folder of a run of kind caption, or of its probe")
    add_keys(parser, "settings: positive=PROMPT, negative=PROMPT, and those of the documentation")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print where the direction is, and its cosines."""
    from diffprobe.core.terminal import one_line
    from diffprobe.evaluation.caption_direction import CaptionDirectionConfig, caption_direction

    config = parse_keys(args.keys, CaptionDirectionConfig)
    if args.check:
        print("the configuration is valid")
        return 0
    found = caption_direction(args.run, config)
    made = found.direction
    print(f"+ {one_line(made.positive)}")
    print(f"- {one_line(made.negative)}")
    print(f"cell {made.cell}, distance between both ends {made.scale:.4g}")
    for name, cosine in found.cosines.items():
        print(f"cosine {cosine:+.3f} with {one_line(name)}")
    if found.cosines:
        print(f"cosines of random directions: standard deviation {found.random_cosine:.3f}")
    print(f"direction: {found.folder}")
    return 0
