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


def run(args: argparse.Namespace) -> int:
    """Print the tables, or the schema of their file."""
    if args.schema:
        from diffprobe.report.table_schema import SCHEMA_FILE

        print(SCHEMA_FILE.read_text(encoding="utf-8"), end="")
        return 0
    from diffprobe.report.query import parse_condition
    from diffprobe.report.table import build_table

    if args.figure:
        from diffprobe.report.figure_file import check_ending

        check_ending(args.figure)  # before anything is read
    table = build_table(args.what, args.results, where=dict(map(parse_condition, args.where)))
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
