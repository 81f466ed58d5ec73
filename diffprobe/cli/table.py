"""``diffprobe table``: print tables of results, draw them, and describe them for `table.yaml`."""

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffprobe.report.table import Table

GROUP = "runs"
HELP = "print or draw a table of results (Markdown, CSV, LaTeX, figures)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what to show, its format, its figure, and the results."""
    parser.add_argument(
        "what", nargs="*", metavar="NAME|FOLDER|RUN",
        help="a table (folder below experiments/ with a table.yaml, for example emoji), or folders of results: these "
        "are shown by layer and timestep (default: all runs of --results)",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=["markdown", "csv", "latex"], default="markdown", help="output format (default: markdown)"
    )
    parser.add_argument("--results", metavar="DIR", help="folder of the result.json files of a NAME (default: runs)")
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help="narrow the filter of the table; repeatable"
    )
    parser.add_argument(
        "--exploratory", action="store_true",
        help="allow tables that compare many cells on test; they are marked exploratory",
    )  # fmt: skip
    parser.add_argument(
        "--save-yaml", metavar="FILE", help="also write the table.yaml of what is shown; FILE must not exist"
    )
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of table.yaml, and nothing else")
    parser.add_argument(
        "--figure", metavar="FILE",
        help="also draw the tables: FILE.pdf (a page each), FILE.svg or FILE.png (a numbered file each)",
    )  # fmt: skip
    parser.add_argument(
        "--plot", choices=["heat-map", "line"], default="heat-map", help="what --figure draws (default: heat-map)"
    )
    remote = parser.add_argument_group("results of W&B runs, instead of a folder")
    remote.add_argument(
        "--from", dest="source", choices=["wandb"],
        help="read the results that runs with logger=wandb have sent, of the groups of the experiments of NAME",
    )  # fmt: skip
    remote.add_argument("--project", help="W&B project (default: logger.project of the experiments)")
    remote.add_argument("--entity", help="W&B team or user (default: logger.entity, else that of the login)")
    remote.add_argument("--group", action="append", default=[], help="W&B group (default: the experiments); repeatable")
    remote.add_argument("--offline-dir", metavar="DIR", help="read the offline runs below DIR instead of the server")
    remote.add_argument("--without", action="append", default=[], metavar="ID", help="leave a run out; repeatable")


def run(args: argparse.Namespace) -> int:
    """Print the tables, or the schema of their file."""
    if args.schema:
        from diffprobe.report.table_schema import SCHEMA_FILE

        print(SCHEMA_FILE.read_text(encoding="utf-8"), end="")
        return 0
    from diffprobe.report.query import parse_condition
    from diffprobe.runs.tables import build_table

    if args.figure:
        from diffprobe.report.figure_file import check_ending

        check_ending(args.figure)  # before anything is read
    results = _fetched(args) if args.source else _local(args)
    table = build_table(args.what, results, where=dict(map(parse_condition, args.where)), exploratory=args.exploratory)
    text = table.render(args.format)
    if args.save_yaml:
        _save_yaml(table, args.save_yaml)
    print(text, end="", flush=True)
    if args.figure:
        from diffprobe.report.figure_file import save_figures

        for path in save_figures(table.figures(args.plot), args.figure):
            print(f"figure: {path}", file=sys.stderr)
    _explain(table, args.save_yaml)
    return 0


def _local(args: argparse.Namespace) -> str | None:
    from diffprobe.core.errors import ConfigError

    given = [name for name in ("project", "entity", "group", "offline_dir", "without") if getattr(args, name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ConfigError(f"{options} without --from wandb.", fix="--from wandb")
    return None if args.results is None else str(args.results)


def _fetched(args: argparse.Namespace) -> str:
    """Bring the results of W&B runs into a folder and return it; say what is there on standard error."""
    from diffprobe.core.errors import ConfigError
    from diffprobe.runs.wandb_results import connect, fetch_results, offline_results, place_of_runs

    if args.results is not None:
        raise ConfigError("--results names a folder, and --from wandb reads none.", fix="one of the two")
    if len(args.what) > 1 or not (args.what or args.group or args.offline_dir):
        raise ConfigError("--from wandb takes the name of one table or experiment.", fix="NAME; or --group GROUP")
    name = args.what[0] if args.what else None
    if name is not None:
        _require_a_name(name)
    if args.offline_dir:
        online = [option for option in ("project", "entity", "group") if getattr(args, option)]
        if online:
            raise ConfigError(f"--{online[0]} with --offline-dir: offline runs are all read, whatever their project.")
        found = offline_results(args.offline_dir, without=args.without)
    else:
        place = place_of_runs(name, project=args.project, entity=args.entity, groups=args.group)
        found = fetch_results(connect(), place, without=args.without)
    for line in found.left_out:
        print(f"left out: {line}", file=sys.stderr)
    again = f"diffprobe table{f' {name}' if name else ''} --results {found.folder}"
    print(f"W&B: results of {found.n_runs} runs; again without W&B: {again}", file=sys.stderr)
    return str(found.folder)


def _require_a_name(name: str) -> None:
    """Refuse a folder of results before anything is fetched. Raises: ConfigError."""
    import os

    from diffprobe.core.errors import ConfigError
    from diffprobe.report.table_spec import has_spec

    if not has_spec(name) and os.path.exists(name):
        raise ConfigError(
            f"--from wandb takes the name of a table or experiment, and '{name}' is a folder.",
            fix="leave it out, with --group GROUP or --offline-dir DIR",
        )


def _save_yaml(table: "Table", file: str) -> None:
    from pathlib import Path

    from diffprobe.core.atomic_file import atomic_file
    from diffprobe.core.errors import ConfigError

    path = Path(file)
    if path.exists():
        raise ConfigError(f"'{path}' exists and is not replaced.", fix="another FILE, or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(table.to_yaml(), encoding="utf-8")


def _explain(table: "Table", saved: str | None) -> None:
    """Say on standard error what was chosen for want of a `table.yaml`, and how to change it."""
    if not table.choices:
        return
    lines = ["no table.yaml was named, so this was chosen:", *(f"  {choice}" for choice in table.choices)]
    file = saved or "experiments/NAME/table.yaml"
    again = f"diffprobe table NAME --results {table.folder}"
    if saved:
        lines.append(f"written: {file}; below experiments/NAME it is made again with: {again}")
    else:
        lines.append(f"to change it: --save-yaml {file}, then {again}")
    print("\n".join(lines), file=sys.stderr)
