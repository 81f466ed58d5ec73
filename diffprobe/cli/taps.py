"""`diffprobe taps`: print the places of a backbone that can be read, from its config alone."""

import argparse

HELP = "list a backbone's taps with their sizes and cost"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("backbone", help='folder in diffusers format, hub id, "emoji-sd" (shipped) or "pixels"')
    parser.add_argument(
        "--resolution", type=int, metavar="N", help="image side in pixels (default: the checkpoint's own)"
    )
    parser.add_argument("--revision", help="commit, tag or branch of a hub id")
    parser.add_argument("--inner", action="store_true", help="list the modules inside the blocks, too")


def run(args: argparse.Namespace) -> int:
    """Print one line a tap, in the order in which the backbone reaches them."""
    from diffprobe.backbones.taps import list_taps
    from diffprobe.core.errors import ConfigError

    if args.resolution is not None and args.resolution < 1:
        raise ConfigError(f"--resolution {args.resolution}: at least 1 pixel is needed.")
    taps = list_taps(args.backbone, resolution=args.resolution, revision=args.revision, inner=args.inner)
    rows = [("tap", "aliases", "channels", "size", "FLOPs to reach")]
    for tap in taps:
        size = f"{tap.size[0]} x {tap.size[1]}"
        rows.append((tap.path, ", ".join(tap.aliases) or "-", str(tap.channels), size, f"{tap.flop_share or 0:.1%}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        path, aliases, *numbers = (
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join((path, aliases, *numbers)).rstrip())
    return 0
