"""``diffprobe train``: train a probe, or a part of a diffusion model, and write its result."""

import argparse
import shlex
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_settings
from diffprobe.core.errors import RunFailed
from diffprobe.core.processes import is_main_process
from diffprobe.core.result import RESULT_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from diffprobe.runs.experiment import TrainingConfig

GROUP = "probes"
HELP = "train a probe, or a part of a diffusion model"
STAYS = "finished runs and saved checkpoints are on disk"
"""What a command that was stopped continues from."""
TAKES_PROCESSES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the settings and `--check`."""
    add_settings(parser)
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Validate, train, and print the test metrics and the path of the result; of several seeds or rungs, of each."""
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.runs.experiment import load_experiments, plan_training, train
    from diffprobe.runs.seeds import unfinished

    keep_freed_memory()  # before the first tensor is allocated
    configs = load_experiments(None, args.settings, announce=_say)
    folders = [plan_training(config, fetch=not args.check) for config in configs]
    name_of = _names(configs)
    if args.check and len({_control(config) for config in configs}) > 1:
        print("the configurations are valid; run folders:")
        print(*(f"{name_of(config)}: {folder}" for config, folder in zip(configs, folders, strict=True)), sep="\n")
        return 0
    if args.check:
        print(f"the configuration is valid; run folder: {', '.join(map(str, folders))}")
        for line in getattr(configs[0], "cost_lines", ()):
            print(line)
        return 0
    due = unfinished(folders) if all(config.trainer.resume for config in configs) else [True] * len(configs)
    paths = []
    for config, folder, is_due in zip(configs, folders, due if len(configs) > 1 else [True], strict=True):
        if len(configs) > 1 and is_main_process():
            print(f"{name_of(config)}: {folder}" + ("" if is_due else " (finished before, kept)"), flush=True)
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


def _say(line: str) -> None:
    if is_main_process():
        print(line, flush=True)


def _names(configs: "Sequence[TrainingConfig]") -> "Callable[[TrainingConfig], str]":
    """Return what names a run among those of one command: its rung, its seed, or both."""
    from diffprobe.runs.ladder import rung_name

    controls = {_control(config) for config in configs}
    seeds = {config.seed for config in configs}

    def name(config: "TrainingConfig") -> str:
        parts = [rung_name(_control(config))] if len(controls) > 1 else []
        return ", ".join([*parts, f"seed {config.seed}"] if len(seeds) > 1 or not parts else parts)

    return name


def _control(config: "TrainingConfig") -> str:
    return str(getattr(config, "control", "none"))


def _print(paths: "list[Path]") -> None:
    from diffprobe.core.result import RunResult, read_result
    from diffprobe.report.aggregation import control_of
    from diffprobe.report.entry import format_record, published_lines
    from diffprobe.runs.ladder import rung_name
    from diffprobe.runs.seeds import describe_seeds, over_seeds

    results = [read_result(path) for path in paths]
    several = len({control_of(result) for result in results}) > 1
    for path, result in zip(paths, results, strict=True):
        if several:
            print(f"{rung_name(control_of(result))}:")
        tested = [record for record in result.metrics if record.split == "test"]
        for record in tested or result.metrics:  # the training of a part of a diffusion model has validation alone
            print(format_record(record))
            for line in published_lines(record, result):
                print(line)
        print(f"result: {path}")
    rungs: dict[str | None, list[RunResult]] = {}
    for result in results:
        rungs.setdefault(control_of(result), []).append(result)
    for control, of_rung in rungs.items():
        if len(of_rung) == 1:
            continue
        rung = f"{rung_name(control)}, " if len(rungs) > 1 else ""
        print(f"{rung}over {len(of_rung)} seeds, which vary: {describe_seeds(of_rung)}")
        for record in over_seeds(of_rung):
            spread = "no ±: all seeds give one value" if record.spread is None else f"± {record.spread:.4g}"
            print(f"{format_record(record)}  {spread}")
    if len(rungs) > 1:
        print(f"their table: diffprobe table {shlex.quote(str(paths[0].parent.parent))}")
