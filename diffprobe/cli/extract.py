"""``diffprobe extract``: write the feature store of a run, or of a file of prompts."""

import argparse
import os
import sys

from diffprobe.cli.arguments import add_check, add_settings, part_of

GROUP = "features"
HELP = "write features of images or prompts to a store; can be continued"
STAYS = "finished shards are on disk"
"""What a command that was stopped continues from."""
TAKES_PROCESSES = True
_PROCESS = (
    "write part I of N (0/2 and 1/2 together make the store); parts can run at the same time on any machine. Default: "
    "the numbers that torchrun, srun or mpirun gives its processes, or the whole store"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the verb takes."""
    add_settings(parser)
    add_check(parser)
    parser.add_argument("--process", metavar="I/N", type=part_of, help=_PROCESS)
    parser.add_argument("--quiet", action="store_true", help="no progress bar; print the folder only")


def run(args: argparse.Namespace) -> int:
    """Extract, then print the folder of each store and whether it is complete. Progress goes to stderr.

    With `--check`, print what would be written and run.
    """
    from diffprobe.config.compose import compose, require_kind, validate
    from diffprobe.config.kinds import PROBE, kinds_of
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.features.process_partition import Share, share_of
    from diffprobe.runs.extract import check_run, extract_run
    from diffprobe.runs.ladder import each_rung, is_ladder, rung_name
    from diffprobe.runs.rungs import those_that_apply
    from diffprobe.runs.seeds import each_seed

    share = share_of(os.environ) if args.process is None else Share(*args.process)
    keep_freed_memory()  # before the first tensor
    composed = compose(None, args.settings)
    require_kind(composed, (PROBE, *kinds_of("extract")))
    # the features of all seeds of a list are the same
    configs = [validate(each_seed(rung)[0]) for rung in each_rung(composed)]
    announce = (lambda line: None) if args.quiet else (lambda line: print(line, file=sys.stderr))
    if share.note:
        announce(f"process {share} ({share.note})")
    if is_ladder(composed):
        configs = those_that_apply(configs, lambda line: print(line, file=sys.stderr))

    if args.check:
        print("the configuration is valid")
        for config in configs:
            heading = [f"{rung_name(config.control)}:"] if is_ladder(composed) else []
            print("\n".join([*heading, *check_run(config, process=(share.index, share.count))]))
        return 0

    from diffprobe.features.reader import FeatureStore

    for config in configs:
        if is_ladder(composed):
            announce(f"{rung_name(config.control)}:")
        path = extract_run(config, process=(share.index, share.count), progress=not args.quiet, announce=announce)
        missing = FeatureStore.open(path).missing()
        print(path, flush=True)
        if missing:
            print(f"part {share} is written; {len(missing)} shards of the store are missing (other parts).")
    return 0
