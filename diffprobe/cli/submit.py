"""``diffprobe submit``: run any command of diffprobe as jobs of a SLURM cluster."""

import argparse
import contextlib
import io
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffprobe.launch.submission import Submission
    from diffprobe.runs.submit import SubmissionPlan, Wanted

GROUP = "cluster"
HELP = "submit a command, with what it needs, to a SLURM cluster"
_NOT_SUBMITTED = ("submit", "jobs")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of submit, which may also follow the command, and the command."""
    _add_options(parser)
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="VERB ...",
        help="the command without `diffprobe`, with cluster=NAME, cluster.KEY=VALUE; several values of a key "
        "(seed=0,1,2) or experiments (experiment=a,b or 'folder/*') become a job array",
    )


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print the scripts; nothing is written or submitted")
    parser.add_argument("--limit", type=_count, metavar="N", help="tasks of an array that run at once")
    parser.add_argument(
        "--parts", type=_count, metavar="N", default=1, help="divide each extraction into N tasks (default: 1)"
    )
    parser.add_argument("--again", action="store_true", help="submit finished runs as well; they are trained anew")


def run(args: argparse.Namespace) -> int:
    """Validate everything, then submit, and print the ids and where the logs are."""
    from pathlib import Path

    from diffprobe.config.cluster import load_cluster, split_cluster
    from diffprobe.core.errors import ConfigError
    from diffprobe.launch import slurm
    from diffprobe.launch.submission import active_tasks, new_submission, send, submission_lock
    from diffprobe.runs.submit import plan_submission

    words = _options_after_the_command(args)
    if not words:
        raise ConfigError("nothing to submit.", fix="diffprobe submit train experiment=NAME cluster=NAME")
    ours, words = split_cluster(words)
    cluster_name, cluster = load_cluster(ours)
    wanted = _wanted(args, words)
    folder = Path.cwd() / cluster.folder
    if not args.dry_run:
        slurm.require_sbatch(f"diffprobe {' '.join(words)}")
    with contextlib.nullcontext() if args.dry_run else submission_lock(folder):
        active = active_tasks(folder) if slurm.installed() else {}
        plan = plan_submission(wanted, cluster, cluster_name, active=active, check=_check)
        with contextlib.redirect_stdout(sys.stderr) if args.dry_run else contextlib.nullcontext():  # scripts alone
            if not _has_work(plan):
                return 0
        planned = new_submission(
            plan.stages,
            cluster,
            cluster_name=cluster_name,
            command=args.command,
            label=plan.label,
            workdir=Path.cwd(),
            array_limit=args.limit,
        )
        if args.dry_run:
            print("\n".join(planned.script(stage) for stage in planned.stages), end="")
            return 0
        print_submitted(send(planned))
    return 0


def _options_after_the_command(args: argparse.Namespace) -> list[str]:
    """Take the options of submit out of the command, and return the rest of it."""
    late = argparse.ArgumentParser(prog="diffprobe submit", add_help=False, allow_abbrev=False)
    _add_options(late)
    found, words = late.parse_known_args(args.command[1:])
    args.dry_run, args.again = args.dry_run or found.dry_run, args.again or found.again
    args.limit = found.limit or args.limit
    args.parts = found.parts if found.parts != 1 else args.parts
    return [*args.command[:1], *words]


def _wanted(args: argparse.Namespace, words: Sequence[str]) -> "Wanted":
    """Take a command apart, by the parser of its verb. Raises: ConfigError for a verb that is not submitted."""
    from diffprobe.cli.main import make_parser, verbs
    from diffprobe.core.errors import ConfigError, unknown
    from diffprobe.runs.submit import Wanted

    verb, *rest = words
    if verb in _NOT_SUBMITTED:
        raise ConfigError(f"`diffprobe {verb}` runs on the login node; it is not submitted.")
    if verb not in verbs():
        raise unknown("verb", verb, [name for name in verbs() if name not in _NOT_SUBMITTED])
    if "--check" in rest:
        raise ConfigError("submit validates in any case.", fix="--dry-run shows the scripts and submits nothing")
    parser = make_parser(verb)
    if verb == "table":  # its rows are trained with the settings, which the verb itself has not got
        found, unknown_words = parser.parse_known_args(rest)
        odd = [word for word in unknown_words if word.startswith("-")]
        if odd:
            parser.error(f"unrecognized arguments: {' '.join(odd)}")
        settings = [word for word in (*found.what, *unknown_words) if "=" in word]
    else:
        settings = list(getattr(parser.parse_args(rest), "settings", ()))
    others = list(rest)
    for setting in settings:
        others.remove(setting)
    if args.parts > 1 and any(word.partition("=")[0] == "--process" for word in others):
        raise ConfigError("--parts and --process both divide the extraction.", fix="leave one of them out")
    return Wanted(verb=verb, words=tuple(others), settings=tuple(settings), parts=args.parts, again=args.again)


def _check(verb: str, words: Sequence[str]) -> None:
    """Validate the arguments of a verb, with its `--check` where it has one. Raises: what that raises."""
    from diffprobe.cli.main import make_parser
    from diffprobe.core.registry import VERBS

    parser = make_parser(verb)
    args = parser.parse_args(list(words))
    if hasattr(args, "check"):
        args.check = True
        with contextlib.redirect_stdout(io.StringIO()):
            VERBS.load(verb.replace("-", "_")).run(args)


def _has_work(plan: "SubmissionPlan") -> bool:
    """Print what is left out. Raises: RunFailed if everything that is not finished is in the queue already."""
    from diffprobe.core.errors import RunFailed

    for folder in plan.finished:
        print(f"finished, left out: {folder}")
    if plan.queued and not [stage for stage in plan.stages if stage.name != "table"]:
        raise RunFailed(
            "this is in the queue already; a second job would write the same files.",
            *(f"job {job}: {work}" for work, job in plan.queued.items()),
            fix=f"diffprobe jobs; or diffprobe jobs cancel {next(iter(plan.queued.values()))}",
        )
    for work, job in plan.queued.items():
        print(f"in the queue as job {job}, left out: {work}")
    if not plan.stages:
        print("nothing is left to submit; --again submits finished runs as well")
    return bool(plan.stages)


def print_submitted(sent: "Submission") -> None:
    """Print the jobs of a submission, their logs and the folders of their runs."""
    for stage in sent.stages:
        n = len(stage.tasks)
        waits = [*(sent.jobs[name] for name in stage.after), *stage.after_jobs]
        after = f", after {', '.join(waits)}" if waits else ""
        print(f"job {sent.jobs[stage.name]}: {stage.name}{f', {n} tasks' if n > 1 else ''}{after}")
    for task in sent.tasks():
        print(f"  {task.job} log: {task.log}")
        if task.task.run_folder is not None:
            print(f"  {task.job} run folder: {task.task.run_folder}")
    print("state: diffprobe jobs")


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 1")
    return int(text)
