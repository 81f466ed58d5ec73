"""``diffprobe discover``: which attributes vary in a store of prompts or images, found without naming any."""

import argparse

from diffprobe.cli.arguments import add_check, add_keys, parse_keys

GROUP = "meaning"
HELP = "find attributes that vary in a store, and those tied to subjects"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the store, the settings and the output folder."""
    parser.add_argument("store", metavar="STORE", help="folder of a feature store, of prompts or of images")
    add_keys(parser, "settings: cell=NAME, and those of the documentation")
    parser.add_argument("--output", default="runs", metavar="FOLDER", help="folder of runs (default: runs)")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print the table of what was found. Returns 0."""
    from diffprobe.evaluation.discover_settings import DiscoverConfig

    config = parse_keys(args.keys, DiscoverConfig)
    if args.check:
        print("the configuration is valid")
        return 0
    from diffprobe.core.result import read_result
    from diffprobe.evaluation.discover import discover
    from diffprobe.report.discovery_table import terminal_lines

    written = discover(args.store, config, output=args.output)
    for line in terminal_lines(read_result(written.result)):
        print(line)
    print(f"result: {written.result}")
    print(f"table: {written.csv}")
    print(f"page: {written.page}")
    return 0
