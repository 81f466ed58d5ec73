"""``diffprobe run``: train all rows of a table, here or on a cluster, and print the table."""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_settings

if TYPE_CHECKING:
    from diffprobe.runs.run_table import PlannedRow, RowOutcome

GROUP = "runs"
HELP = "run what is missing of a table, row by row, and print the table"
STAYS = "finished rows and saved checkpoints are on disk"
"""What a command that was stopped continues from."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the table, the settings of its rows, and what is done with them."""
    parser.add_argument(
        "name", metavar="NAME", help="folder below experiments/ with a table.yaml, for example experiments/emoji"
    )
    add_settings(parser, note="they hold for all rows, and several values of a key (seed=0,1,2) are a row each")
    parser.add_argument(
        "--dry-run", action="store_true", help="validate all rows, print what is done and what the rest costs, and stop"
    )
    parser.add_argument("--again", action="store_true", help="run finished rows as well; they are trained anew")
    parser.add_argument("--quiet", action="store_true", help="no progress bar of extractions")
    parser.add_argument("--submit", action="store_true", help="submit the rows to the cluster of cluster=NAME")
    speed = parser.add_argument_group("the device, for the hours that the rows take")
    speed.add_argument(
        "--passes-s", type=float, metavar="X", help="denoiser passes per second, as diffprobe bench extraction times it"
    )
    speed.add_argument(
        "--steps-s", type=float, metavar="X", help="optimiser steps per second, as diffprobe bench ksae times it"
    )


def run(args: argparse.Namespace) -> int:
    """Validate, print the plan and its cost, run, and print the table; status 1 if a row failed or cannot be run."""
    from diffprobe.config.cluster import split_cluster
    from diffprobe.core.errors import ConfigError
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.runs.run_table import plan_table, run_rows
    from diffprobe.runs.table_cost import Cost, hours
    from diffprobe.runs.table_rows import table_name

    keep_freed_memory()  # before the first tensor
    hours(Cost(), passes_s=args.passes_s, steps_s=args.steps_s)  # refuses speeds out of range
    cluster, settings = split_cluster(args.settings)
    if cluster and not args.submit:
        raise ConfigError(f"{cluster[0]} without --submit: the rows run here.", fix="--submit, or leave it out")
    name = table_name(args.name)
    rows = plan_table(name, settings, again=args.again)
    out = sys.stderr if args.submit and args.dry_run else sys.stdout  # scripts alone
    lines = [*_plan_lines(name, rows, args.passes_s, args.steps_s), *_control_lines(name, settings)]
    print("\n".join(lines), file=out, flush=True)
    if args.submit:
        return _submit(args, name)
    failed = any(row.error is not None for row in rows)
    if args.dry_run:
        return 1 if failed else 0
    outcomes = run_rows(rows, announce=_to_stderr, progress=not args.quiet)
    _print_table(name, rows)
    return _report(outcomes)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _plan_lines(name: str, rows: "Sequence[PlannedRow]", passes_s: float | None, steps_s: float | None) -> "list[str]":
    from diffprobe.runs.table_cost import hours, total

    states = ("finished", "interrupted", "missing", "invalid")
    counts = {state: sum(row.state == state for row in rows) for state in states}
    shown = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    lines = [f"{name}: {len(rows)} row{'' if len(rows) == 1 else 's'}: {shown}"]
    width = max(len(row.name) for row in rows)
    for row in rows:
        lines.append(f"  {row.name:<{width}}  {row.state:<11}  {row.folder or ''}".rstrip())
        if row.error is not None:
            lines += [f"    {line}" for line in f"{type(row.error).__name__}: {row.error}".splitlines()]
    cost = total(row.cost for row in rows if row.state != "finished")
    lines.append(f"to do: {cost.passes:,} denoiser passes, {cost.steps:,} optimiser steps")
    if cost.published:
        lines.append("  by the published number of images, where the data are not here")
    if cost.unknown:
        lines.append("  without rows whose number of images is not known, since their data are not here")
    time = hours(cost, passes_s=passes_s, steps_s=steps_s)
    if time is None:
        lines.append("  hours: at --passes-s X --steps-s X, the speeds of the device")
    elif cost.passes or cost.steps:
        speeds = [f"{speed:g} {what}/s" for speed, what in ((passes_s, "passes"), (steps_s, "steps")) if speed]
        lines.append(
            f"  about {time:,.2f} h at {', '.join(speeds)}, as stated; reading and encoding images come on top"
        )
    return lines


def _control_lines(name: str, settings: "Sequence[str]") -> "list[str]":
    from diffprobe.config.controls import ALL_RUNGS
    from diffprobe.runs.table_rows import control_runs

    controls = control_runs(name)
    if not controls or any(setting.startswith("control=") for setting in settings):
        return []
    return [f"its controls are runs of their own ({', '.join(controls)}), which control={ALL_RUNGS} adds"]


def _submit(args: argparse.Namespace, name: str) -> int:
    """Hand the rows to `diffprobe submit`, which finds the same ones and adds the table. Returns: its status."""
    from diffprobe.cli.submit import run as submit

    options = argparse.Namespace(
        command=["table", name, *args.settings], dry_run=args.dry_run, again=args.again, limit=None, parts=1
    )
    return submit(options)


def _print_table(name: str, rows: "Sequence[PlannedRow]") -> None:
    """Print the table, or why there is none yet."""
    from diffprobe.core.errors import DiffprobeError
    from diffprobe.runs.tables import build_table

    outputs = list(dict.fromkeys(row.config.output for row in rows if row.config is not None))
    if len(outputs) != 1:
        return
    try:
        print(build_table(name, outputs[0]).render("markdown"), end="", flush=True)
    except DiffprobeError as error:
        _to_stderr(f"no table: {type(error).__name__}: {error}")
        return
    _to_stderr(f"in other formats: diffprobe table {name} --results {outputs[0]} --format csv")


def _report(outcomes: "Sequence[RowOutcome]") -> int:
    """Say which rows failed. Returns: 1 if one did."""
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if not failed:
        return 0
    _to_stderr(f"{len(failed)} of {len(outcomes)} rows failed:")
    for outcome in failed:
        first = str(outcome.error).splitlines()[0]
        _to_stderr(f"  {outcome.row.name}: {type(outcome.error).__name__}: {first}")
        _to_stderr(f"    alone, with the whole error: {outcome.row.command} --traceback")
    return 1
