"""`diffprobe table`: print a table from result files. Parses and prints; the work is in `report/`."""

import argparse

HELP = "print the table of an experiment from its result files (Markdown, CSV or LaTeX)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("experiment", help="folder below experiments/ that holds a table.yaml, for example emoji")
    parser.add_argument("--format", choices=["markdown", "csv", "latex"], default="markdown", help="default: markdown")
    parser.add_argument("--results", default="runs", metavar="DIR", help="folder with result.json files; default: runs")
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help="narrow the table's filter; may be repeated"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table. Returns the exit status."""
    import dataclasses

    from diffprobe.report.collect import collect
    from diffprobe.report.query import parse_condition
    from diffprobe.report.spec import find_spec, load_specs
    from diffprobe.report.table import render_all

    results, where = collect(args.results), dict(map(parse_condition, args.where))
    specs = load_specs(find_spec(args.experiment))
    specs = tuple(dataclasses.replace(spec, filter={**spec.filter, **where}) for spec in specs)
    print(render_all(results, specs, args.format), end="")
    return 0
