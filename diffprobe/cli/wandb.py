"""``diffprobe wandb``: send offline runs, make the dashboard of an experiment, and sweeps of it."""

import argparse
import json
import sys

GROUP = "cluster"
HELP = "send runs to W&B; make workspace and sweep of an experiment"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    sync = commands.add_parser("sync", help="send the offline runs below a folder, from a machine with a network")
    sync.add_argument("--results", default="runs", metavar="DIR", help="folder of the runs (default: runs)")
    sync.add_argument("--dry-run", action="store_true", help="list them only")
    workspace = commands.add_parser("workspace", help="make the workspace of an experiment or of a folder of them")
    workspace.add_argument(
        "experiment", help="an experiment or a folder below experiments/, for example emoji/sae_table"
    )
    workspace.add_argument("--project", default="diffprobe", help="W&B project (default: diffprobe)")
    workspace.add_argument("--entity", help="W&B team or user (default: that of the login)")
    workspace.add_argument("--dry-run", action="store_true", help="print what would be sent, as JSON")
    sweep = commands.add_parser("sweep", help="print the W&B sweep of an experiment as YAML, or register it")
    sweep.add_argument("experiment", help="an experiment, for example emoji/sae")
    sweep.add_argument(
        "values", nargs="+", metavar="KEY=VALUES",
        help="what varies: KEY=A,B or KEY=[A,B], KEY=interval(LOW,HIGH), KEY=log(interval(LOW,HIGH)); and settings of "
        "all runs, KEY=VALUE",
    )  # fmt: skip
    sweep.add_argument("--method", choices=["grid", "random", "bayes"], default="grid", help="default: grid")
    sweep.add_argument(
        "--metric", help="metric whose best value on val is optimised (default: the first of its tables)"
    )
    sweep.add_argument("--goal", choices=["minimize", "maximize"], help="default: the better end of the metric")
    sweep.add_argument("--project", help="W&B project (default: logger.project)")
    sweep.add_argument("--entity", help="W&B team or user (default: logger.entity, else that of the login)")
    sweep.add_argument("--create", action="store_true", help="register the sweep on W&B and print the agent's command")


def run(args: argparse.Namespace) -> int:
    """Run the command. `sync` returns 1 if W&B refused something."""
    return {"sync": _sync, "workspace": _workspace, "sweep": _sweep}[args.command](args)


def _sync(args: argparse.Namespace) -> int:
    from diffprobe.launch.wandb_sync import offline_runs, send

    found = offline_runs(args.results)
    for path in found:
        print(path)
    print(f"{len(found)} offline run{'' if len(found) == 1 else 's'} to send", file=sys.stderr)
    if args.dry_run or not found:
        return 0
    _require_login("diffprobe wandb sync")
    sys.stdout.flush()
    return 0 if send(found) == 0 else 1


def _workspace(args: argparse.Namespace) -> int:
    from diffprobe.launch.wandb_workspace import make_workspace, spec_of
    from diffprobe.runs.dashboard import dashboard_of

    dashboard = dashboard_of(args.experiment)
    if not args.dry_run:
        _require_login("diffprobe wandb workspace")
    entity = args.entity or ("ENTITY" if args.dry_run else _default_entity())
    workspace = make_workspace(dashboard, entity=entity, project=args.project, name=args.experiment)
    if args.dry_run:
        print(json.dumps(spec_of(workspace), indent=2))
        return 0
    workspace.save()
    print(workspace.url)
    return 0


def _sweep(args: argparse.Namespace) -> int:
    from diffprobe.runs.wandb_sweep import agent_command, plan_sweep, register, sweep_yaml

    plan = plan_sweep(
        args.experiment,
        args.values,
        method=args.method,
        metric=args.metric,
        goal=args.goal,
        project=args.project,
        entity=args.entity,
    )
    if args.create:
        _require_login("diffprobe wandb sweep --create", fix="wandb login; or without --create, which sends nothing")
    print(sweep_yaml(plan), end="", flush=True)
    print(f"{len(plan.points)} configurations were validated", file=sys.stderr)
    if args.create:
        print(f"agent: {agent_command(plan, register(plan))}", file=sys.stderr)
    else:
        print("to register it: --create; or save it, and: wandb sweep FILE", file=sys.stderr)
    if plan.submit:
        print(f"the same runs as SLURM jobs, without an agent: {plan.submit}", file=sys.stderr)
    return 0


def _require_login(command: str, fix: str = "wandb login; or --dry-run, which sends nothing") -> None:
    from diffprobe.core.errors import RunFailed
    from diffprobe.training.loggers import logged_in

    if not logged_in():
        raise RunFailed(
            f"{command} sends to W&B, which has no key for its server (neither WANDB_API_KEY nor a netrc entry).",
            fix=fix,
        )


def _default_entity() -> str:
    import wandb

    from diffprobe.core.errors import RunFailed

    found = wandb.Api().default_entity
    if not found:
        raise RunFailed("W&B names no default team or user of this login.", fix="--entity NAME")
    return str(found)
