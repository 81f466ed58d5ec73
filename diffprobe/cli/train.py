"""``diffprobe train``: train a probe, or a part of a diffusion model, and write its result."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_settings
from diffprobe.core.errors import RunFailed
from diffprobe.core.processes import is_main_process
from diffprobe.core.result import RESULT_FILE

if TYPE_CHECKING:
    from pathlib import Path

GROUP = "probes"
HELP = "train a probe, or a part of a diffusion model"
TAKES_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings and `--check`."""
    add_settings(parser)
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Validate, train, and print the test metrics and the path of the result; of several seeds, those of each."""
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.runs.experiment import load_experiments, plan_training, train
    from diffprobe.runs.seeds import unfinished

    keep_freed_memory()  # before the first tensor is allocated
    configs = load_experiments(None, args.settings)
    folders = [plan_training(config) for config in configs]
    if args.check:
        print(f"the configuration is valid; run folder: {', '.join(map(str, folders))}")
        return 0
    due = unfinished(folders) if all(config.trainer.resume for config in configs) else [True] * len(configs)
    paths = []
    for config, folder, is_due in zip(configs, folders, due if len(configs) > 1 else [True], strict=True):
        if len(configs) > 1 and is_main_process():
            print(f"seed {config.seed}: {folder}" + ("" if is_due else " (finished before, kept)"))
        if not is_due:
            paths.append(folder / RESULT_FILE)
            continue
        try:
            paths.append(train(config))
        except BrokenPipeError as error:  # not the closed pipe of a printed table: the run has no result
            raise RunFailed(
                "the run ended before its result: the reader of its output is gone.",
                fix="run the command again to continue; trainer.enable_progress_bar=false trains in silence",
            ) from error
    if is_main_process():
        _print(paths)
    return 0


def _print(paths: "list[Path]") -> None:
    from diffprobe.core.result import read_result
    from diffprobe.report.entry import format_record
    from diffprobe.runs.seeds import describe_seeds, over_seeds

    results = [read_result(path) for path in paths]
    for path, result in zip(paths, results, strict=True):
        for record in result.metrics:
            if record.split == "test":
                print(format_record(record))
        print(f"result: {path}")
    if len(results) == 1:
        return
    print(f"over {len(results)} seeds, which vary: {describe_seeds(results)}")
    for record in over_seeds(results):
        spread = "no ±: all seeds give one value" if record.spread is None else f"± {record.spread:.4g}"
        print(f"{format_record(record)}  {spread}")
