"""``diffprobe report``: one self-contained HTML page of any finished runs."""

import argparse
import sys
from typing import TYPE_CHECKING

from diffprobe.core.errors import ConfigError

if TYPE_CHECKING:
    from diffprobe.report.table_spec import TableSpec

GROUP = "runs"
HELP = "write an HTML page of finished runs, with pictures"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs, the page, and what is on it."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folder of a run or of a grid, or a folder below which all runs are shown",
    )
    parser.add_argument("--out", default="report.html", metavar="PAGE.html", help="the page (default: report.html)")
    parser.add_argument("--title", default="", help="heading of the page")
    parser.add_argument(
        "--table", metavar="NAME", help="show the table experiments/NAME/table.yaml (default: layers by timesteps)"
    )
    parser.add_argument(
        "--exploratory", action="store_true",
        help="allow tables that compare many cells on test; they are marked exploratory",
    )  # fmt: skip
    parser.add_argument("--latents", type=int, default=24, metavar="N", help="latents per autoencoder (default: 24)")
    parser.add_argument(
        "--min-active", type=int, default=10, metavar="N",
        help="training samples on which a latent must be active (default: 10)",
    )  # fmt: skip
    parser.add_argument(
        "--group-by", metavar="ATTRIBUTE",
        help="attribute whose samples belong together, in intervals and ends (default: the data set's group); "
        "'sample': single samples",
    )  # fmt: skip
    parser.add_argument("--data-path", metavar="DIR", help="folder of the shards, if they were moved since")
    parser.add_argument(
        "--wandb",
        metavar="PROJECT",
        help="send the page to this W&B project too, linked to the runs' probes",
    )
    parser.add_argument("--entity", help="user or team of the W&B project")


def run(args: argparse.Namespace) -> int:
    """Write the page, and print its path and what it does not show."""
    from diffprobe.core.memory import keep_freed_memory
    from diffprobe.core.progress import ProgressDisplay
    from diffprobe.evaluation.panel_settings import PanelConfig
    from diffprobe.evaluation.run_report import ReportOptions, write_run_report

    keep_freed_memory()
    if args.entity is not None and args.wandb is None:
        raise ConfigError("--entity has no effect without --wandb PROJECT.")
    options = ReportOptions(
        title=args.title,
        tables=_specs(args.table),
        exploratory=args.exploratory,
        panels=PanelConfig(n_latents=args.latents, min_active=args.min_active, group_by=args.group_by),
        data_path=args.data_path,
    )
    with ProgressDisplay(transient=True) as display:
        left_out = write_run_report(
            args.runs, args.out, options, progress=lambda n: display.bar(n, "page", unit="runs", keep=False)
        )
    for sentence in left_out:
        print(f"not shown: {sentence}", file=sys.stderr)
    print(f"page: {args.out}")
    if args.wandb is not None:
        from diffprobe.config.schema import LoggerConfig
        from diffprobe.runs.wandb_report import send_report

        send_report(args.out, args.runs, LoggerConfig(kind="wandb", project=args.wandb, entity=args.entity))
    return 0


def _specs(name: str | None) -> "tuple[TableSpec, ...]":
    from diffprobe.report.table_spec import find_spec, load_specs

    return () if name is None else load_specs(find_spec(name))
