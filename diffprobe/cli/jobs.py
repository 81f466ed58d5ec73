"""``diffprobe jobs``: what became of submitted jobs; cancel, print logs, submit again."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.core.columns import aligned

if TYPE_CHECKING:
    from diffprobe.launch.jobs import TaskState

GROUP = "cluster"
HELP = "show submitted jobs and their progress; cancel, logs, resubmit"
_IDS = "id of a job (17), of a task of an array (17_3), or name of a submission"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options and the sub-verbs; without one, all jobs are listed."""
    what = parser.add_subparsers(dest="what", metavar="WHAT")
    listing = what.add_parser("list", help="list all jobs (the default)")
    for each in (parser, listing):
        each.add_argument(
            "--days", type=float, default=7.0, metavar="N", help="of the last N days, and all in the queue (default: 7)"
        )
        each.add_argument("--format", choices=("table", "json"), default="table", help="output format (default: table)")
    cancel = what.add_parser("cancel", help="cancel jobs that wait or run")
    logs = what.add_parser("logs", help="print the last lines of logs")
    logs.add_argument("--lines", type=int, default=20, metavar="N", help="lines of each log (default: 20)")
    resubmit = what.add_parser("resubmit", help="submit again what is neither finished nor in the queue")
    for each in (cancel, logs, resubmit):
        each.add_argument("ids", nargs="+", metavar="ID", help=_IDS)
    for each in (parser, listing, cancel, logs, resubmit):
        each.add_argument(
            "--folder", default=argparse.SUPPRESS, metavar="DIR", help="folder of submissions (default: runs/jobs)"
        )


def run(args: argparse.Namespace) -> int:
    """Run the sub-verb."""
    args.folder = Path(getattr(args, "folder", "runs/jobs"))
    return {"cancel": _cancel, "logs": _logs, "resubmit": _resubmit}.get(args.what, _list)(args)


def _list(args: argparse.Namespace) -> int:
    import json

    from diffprobe.launch.jobs import task_states

    states = task_states(args.folder, days=args.days)
    if args.format == "json":
        print(json.dumps([state.tree() for state in states], indent=2, ensure_ascii=False))
        return 0
    if not states:
        print(
            f"nothing was submitted from '{args.folder}' in {args.days:g} days; diffprobe submit VERB ... cluster=NAME"
        )
        return 0
    rows = [("job", "stage", "state", "progress", "left", "command"), *(_row(state) for state in states)]
    for i, line in enumerate(aligned(rows)):
        print(line)
        if i and (detail := _detail(states[i - 1])):
            print(f"    {detail}")
    return 0


def _row(state: "TaskState") -> tuple[str, ...]:
    progress = state.progress
    done = "" if progress is None else f"{progress.what} {progress.done:,}/{progress.total:,} {progress.unit}"
    left = "" if progress is None or state.state != "running" else duration(progress.seconds_left)
    return (
        state.task.job,
        state.task.stage.name,
        state.state,
        done,
        left,
        " ".join(state.task.task.command),
    )


def _detail(state: "TaskState") -> str:
    parts = [state.reason] if state.reason else []
    if state.stale and state.progress is not None:
        parts.append("no progress written for long: it may hang")
    if state.last_line and state.state != "finished":
        parts.append(state.last_line)
    return "; ".join(parts)


def duration(seconds: float | None) -> str:
    """Format a number of seconds.

    >>> [duration(seconds) for seconds in (None, 41.2, 3900, 200000)]
    ['', '41 s', '1 h 05 min', '2 d 7 h']
    """
    if seconds is None:
        return ""
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if seconds < 60:
        return f"{seconds:.0f} s"
    if hours < 1:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _cancel(args: argparse.Namespace) -> int:
    from diffprobe.launch import slurm
    from diffprobe.launch.jobs import chosen
    from diffprobe.launch.submission import is_queued

    tasks = chosen(args.folder, args.ids)
    queue = slurm.queue()
    queued = [task.job for task in tasks if is_queued(task, queue)]
    slurm.cancel(queued)
    for job in queued:
        print(f"cancelled: {job}")
    for task in tasks:
        if task.job not in queued:
            print(f"not in the queue: {task.job}")
    return 0


def _logs(args: argparse.Namespace) -> int:
    from diffprobe.core.errors import ConfigError
    from diffprobe.launch.jobs import chosen, last_lines

    if args.lines < 1:
        raise ConfigError(f"--lines={args.lines} is out of range: at least 1.")
    for task in chosen(args.folder, args.ids):
        print(f"== {task.job} {' '.join(task.task.command)}\n   {task.log}")
        lines = last_lines(task.log, args.lines)
        print("\n".join(lines) if lines else "   (no log yet)")
    return 0


def _resubmit(args: argparse.Namespace) -> int:
    from diffprobe.cli.submit import print_submitted
    from diffprobe.core.errors import RunFailed
    from diffprobe.launch import slurm
    from diffprobe.launch.jobs import chosen, is_finished, unfinished
    from diffprobe.launch.submission import active_tasks, new_submission, send, submission_lock

    slurm.require_sbatch("the command that `diffprobe jobs` shows, with `diffprobe` before it")
    with submission_lock(args.folder):
        active = active_tasks(args.folder)
        tasks = []
        for task in chosen(args.folder, args.ids):
            if is_finished(task):
                print(f"finished, left out: {task.job}")
            elif task.task.work in active:
                print(f"in the queue as job {active[task.task.work].job}, left out: {task.job}", file=sys.stderr)
            else:
                tasks.append(task)
        if not tasks:
            raise RunFailed("nothing to submit again: all of it is finished or in the queue.", fix="diffprobe jobs")
        for submission in {task.submission.name: task.submission for task in tasks}.values():
            again = new_submission(
                unfinished(submission, tasks),
                submission.cluster,
                cluster_name=submission.cluster_name,
                command=submission.command,
                label=submission.name.partition("-")[2].partition("-")[2].rpartition("-")[0],
                workdir=submission.workdir,
                array_limit=submission.array_limit,
            )
            print_submitted(send(again))
    return 0
