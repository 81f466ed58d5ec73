"""``diffprobe extract``: write the feature store of a run."""

import argparse

HELP = "write the features of a run to its store; a second call continues or returns at once"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    parser.add_argument(
        "settings", nargs="*", metavar="SETTING", help="experiment=NAME, group=choice (data=emoji), key=value"
    )
    parser.add_argument(
        "--process",
        metavar="I/N",
        type=_part,
        default=(0, 1),
        help="write part I of N (0/2 and 1/2 together make the store); the parts may run at the same time, anywhere",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def run(args: argparse.Namespace) -> int:
    """Extract, then say where the store is and whether it is complete."""
    from diffprobe.config.compose import load_run
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.experiment.extract import extract_run

    keep_freed_memory()  # before the first tensor
    config = load_run(None, args.settings)
    path = extract_run(config, process=args.process, progress=not args.quiet)

    from diffprobe.features.reader import FeatureStore

    missing = FeatureStore.open(path).missing()
    print(path)
    if missing:
        index, count = args.process
        print(f"part {index}/{count} is written; {len(missing)} shards of the store are left to the other parts.")
    return 0


def _part(text: str) -> tuple[int, int]:
    index, slash, count = text.partition("/")
    if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"'{text}' is no part: write I/N with I from 0 to N-1, for example 0/2")
    return int(index), int(count)
