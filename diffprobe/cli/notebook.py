"""``diffprobe notebook``: a Jupyter notebook that opens finished runs."""

import argparse
import sys

GROUP = "runs"
HELP = "write a Jupyter notebook that opens finished runs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs and the notebook."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="folder of a run, or a folder below which all runs are opened"
    )
    parser.add_argument(
        "--out",
        default="runs.ipynb",
        metavar="FILE.ipynb",
        help="the notebook; it must not exist (default: runs.ipynb)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the notebook, and print its path and the runs that have no cell of their own."""
    from diffprobe.notebook.written_notebook import write_notebook

    for folder in write_notebook(args.runs, args.out):
        print(f"in the table only: {folder}", file=sys.stderr)
    print(f"notebook: {args.out}")
    return 0
