"""``diffprobe train``: train a probe, or a part of a diffusion model, and write its result."""

import argparse

from diffprobe.cli.arguments import add_check, add_settings
from diffprobe.core.errors import RunFailed
from diffprobe.core.processes import is_main_process

GROUP = "probes"
HELP = "train a probe, or a part of a diffusion model"
TAKES_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings and `--check`."""
    add_settings(parser)
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Validate, train, and print the test metrics and the path of the result."""
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.runs.experiment import load_experiment, plan_training, train

    keep_freed_memory()  # before the first tensor is allocated
    config = load_experiment(None, args.settings)
    if args.check:
        print(f"the configuration is valid; run folder: {plan_training(config)}")
        return 0
    try:
        path = train(config)
    except BrokenPipeError as error:  # not the closed pipe of a printed table: the run has no result
        raise RunFailed(
            "the run ended before its result: the reader of its output is gone.",
            fix="run the command again to continue; trainer.enable_progress_bar=false prints nothing while it trains",
        ) from error
    if is_main_process():
        from diffprobe.core.result import read_result
        from diffprobe.report.entry import format_record

        for record in read_result(path).metrics:
            if record.split == "test":
                print(format_record(record))
        print(f"result: {path}")
    return 0
