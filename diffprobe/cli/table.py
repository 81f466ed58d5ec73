"""``diffprobe table``: print the table of an experiment from its result files."""

import argparse

GROUP = "runs"
HELP = "print a table of results (Markdown, CSV or LaTeX)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the name of the table, its format, and the results."""
    parser.add_argument("experiment", help="folder below experiments/ that contains a table.yaml, for example emoji")
    parser.add_argument(
        "--format", choices=["markdown", "csv", "latex"], default="markdown", help="output format (default: markdown)"
    )
    parser.add_argument(
        "--results", default="runs", metavar="DIR", help="folder of the result.json files (default: runs)"
    )
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help="narrow the filter of the table; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from diffprobe.report.query import parse_condition
    from diffprobe.report.table import build_table

    where = dict(map(parse_condition, args.where))
    print(build_table(args.experiment, args.results, where=where).render(args.format), end="")
    return 0
