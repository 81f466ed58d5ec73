"""``diffprobe translate``: make a direction from two prompts, without labels."""

import argparse

from diffprobe.cli.arguments import add_check

GROUP = "meaning"
HELP = "make a direction from two prompts by a caption regressor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the run and the settings."""
    parser.add_argument("run", metavar="RUN", help="folder of a run of kind caption, or of its probe")
    parser.add_argument("keys", nargs="*", default=[], metavar="KEY=VALUE", help="settings: positive=PROMPT, "
                        "negative=PROMPT, and those of the documentation")  # fmt: skip
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print where the direction is, and its cosines."""
    from diffprobe.cli.certify import settings_tree
    from diffprobe.config.parse import parse
    from diffprobe.core.terminal import one_line
    from diffprobe.evaluation.caption_direction import CaptionDirectionConfig, caption_direction

    tree = settings_tree(args.keys)
    config = parse(CaptionDirectionConfig, tree, dict.fromkeys(tree, ("the command line", 0)))
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
