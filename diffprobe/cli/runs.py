"""``diffprobe runs``: list the runs below a folder, find the best one, compare some, open them as a page."""

import argparse
import csv
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffprobe.core.columns import aligned

if TYPE_CHECKING:
    from diffprobe.report.run_index import IndexedRun, RunIndex

GROUP = "runs"
HELP = "list, rank, compare or open the runs below a folder"
_FORMATS = ("table", "csv", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the four commands."""
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="one line per run")
    listing.add_argument("--metric", help="metric of the score column (default: the first of each run)")
    listing.add_argument(
        "--sort", choices=["path", "started", "seconds", "score"], default="path", help="order (default: path)"
    )
    best = commands.add_parser("best", help="the best records of a metric, selected on val")
    best.add_argument("metric", help="name of the metric, for example balanced_accuracy")
    best.add_argument("--split", default="val", help="where to select (default: val)")
    best.add_argument("--top", type=_positive, default=5, metavar="N", help="number of records (default: 5)")
    best.add_argument("--order", choices=["highest", "lowest"], help="which values are better (default: as registered)")
    compare = commands.add_parser("compare", help="settings and metrics of some runs beside each other")
    compare.add_argument("runs", nargs="+", metavar="RUN", help="path below the folder, or name of a run")
    opened = commands.add_parser("open", help="write a page with table, curves and settings, and open it in a browser")
    opened.add_argument("runs", nargs="*", metavar="RUN", help="the runs of the page (default: all)")
    opened.add_argument("--metric", help="metric of the score column (default: the first of each run)")
    opened.add_argument("--out", metavar="FILE", help="the page (default: dashboard.html in the folder)")
    opened.add_argument("--no-browser", action="store_true", help="write the page only")
    for command in (listing, best, compare, opened):
        command.add_argument("--results", default="runs", metavar="DIR", help="folder of the runs (default: runs)")
    for command in (listing, best, opened):
        command.add_argument(
            "--where", action="append", default=[], metavar="FIELD=VALUE", help="only what matches; repeatable"
        )
    for command in (listing, best, compare):
        command.add_argument("--format", choices=_FORMATS, default="table", help="output format (default: table)")


def run(args: argparse.Namespace) -> int:
    """Run the command; `list` and `open` return 1 if a result file could not be read."""
    from diffprobe.report.query import parse_condition
    from diffprobe.report.run_index import open_index

    where = dict(map(parse_condition, getattr(args, "where", [])))
    index = open_index(args.results)
    for path, reason in index.unreadable.items():
        print(f"not read: {path}: {reason}", file=sys.stderr)
    commands = {"list": _list, "best": _best, "compare": _compare, "open": _open}
    status: int = commands[args.command](args, index, where)
    return status


def _list(args: argparse.Namespace, index: "RunIndex", where: dict[str, Any]) -> int:
    from diffprobe.metrics.headline import better_first, headline, place_text
    from diffprobe.report.run_selection import select_runs

    listed = [(run, headline(run.result, args.metric)) for run in select_runs(index.runs, where)]
    if args.sort == "started":
        listed.sort(key=lambda pair: pair[0].result.started)
    elif args.sort == "seconds":
        listed.sort(key=lambda pair: pair[0].result.wall_time_s)
    elif args.sort == "score":  # best first; a metric of unknown direction counts as better when higher
        listed.sort(key=lambda pair: math.inf if pair[1] is None else better_first(pair[1]))
    rows = [
        {
            "run": run.path,
            "kind": run.result.kind,
            "experiment": run.result.experiment,
            "metric": "" if record is None else f"{record.name} ({record.split})",
            "score": None if record is None else record.value,
            "where": "" if record is None else place_text(record),
            "seconds": round(run.result.wall_time_s, 1),
            "started": run.result.started,
        }
        for run, record in listed
    ]
    _print(rows, args.format)
    return 1 if index.unreadable else 0


def _best(args: argparse.Namespace, index: "RunIndex", where: dict[str, Any]) -> int:
    from diffprobe.metrics.headline import place_text
    from diffprobe.report.run_selection import rank

    higher = None if args.order is None else args.order == "highest"
    found = rank(index.runs, args.metric, split=args.split, where=where, higher_is_better=higher)
    rows = [
        {
            "run": candidate.run.path,
            "where": place_text(candidate.record),
            f"{args.metric} ({args.split})": candidate.record.value,
            **({} if args.split == "test" else {"test": None if candidate.test is None else candidate.test.value}),
            "samples": candidate.record.n,
        }
        for candidate in found[: args.top]
    ]
    _print(rows, args.format)
    print(f"{len(found):,} records compared", file=sys.stderr)
    if args.split == "test":
        print("exploratory: selected on test, so the best value is too high to be reported", file=sys.stderr)
    return 0


def _compare(args: argparse.Namespace, index: "RunIndex", where: dict[str, Any]) -> int:
    from diffprobe.core.errors import ConfigError
    from diffprobe.report.run_selection import compare_runs

    if len(set(args.runs)) < 2:
        raise ConfigError("one run is given; a comparison needs two.", fix="diffprobe runs compare RUN RUN")
    found = compare_runs([index.named(name) for name in args.runs])
    if args.format == "json":
        parts = {
            name: [{"name": row.name, "values": list(row.values)} for row in getattr(found, name)]
            for name in ("settings", "inputs", "metrics")
        }
        print(json.dumps({"runs": [run.path for run in found.runs], **parts}, indent=2))
        return 0
    rows = []
    for part in ("settings", "inputs", "metrics"):
        for row in getattr(found, part):
            values = dict(zip([run.path for run in found.runs], row.values, strict=True))
            line = {"part": part, "name": row.name, **values}
            if len(row.values) == 2 and part == "metrics":
                line["difference"] = None if None in row.values else row.values[1] - row.values[0]
            elif len(row.values) == 2:
                line["difference"] = ""
            rows.append(line)
    _print(rows, args.format)
    return 0


def _open(args: argparse.Namespace, index: "RunIndex", where: dict[str, Any]) -> int:
    import webbrowser

    from diffprobe.core.atomic_file import atomic_file
    from diffprobe.core.errors import RunFailed
    from diffprobe.report.curves import read_curves
    from diffprobe.report.pages.dashboard import MAX_COMPARED, Dashboard, render_dashboard
    from diffprobe.report.run_selection import select_runs

    chosen: Sequence[IndexedRun] = [index.named(name) for name in args.runs] if args.runs else index.runs
    runs = select_runs(chosen, where)
    if not runs:
        raise RunFailed("no run matches.", fix="fewer conditions (--where)")
    path = Path(args.out) if args.out else index.root / "dashboard.html"
    page = Dashboard(
        title=f"Runs of {index.root}",
        runs=tuple(runs),
        curves={run.path: read_curves(index.root / run.path) for run in runs[:MAX_COMPARED]},
        metric=args.metric,
        unreadable=index.unreadable,
    )
    with atomic_file(path) as temporary:
        temporary.write_text(render_dashboard(page), encoding="utf-8")
    print(path)
    if not args.no_browser and not webbrowser.open(path.absolute().as_uri()):
        print("no browser was found; open the file", file=sys.stderr)
    return 1 if index.unreadable else 0


def _print(rows: list[dict[str, Any]], format: str) -> None:
    if format == "json":
        print(json.dumps(rows, indent=2))
        return
    heads = list(rows[0]) if rows else []
    if format == "csv":
        from diffprobe.report.table import csv_value

        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(map(csv_value, heads))
        writer.writerows([["" if value is None else csv_value(value) for value in row.values()] for row in rows])
        return
    texts = [heads, *([_text(value) for value in row.values()] for row in rows)]
    numbers = [all(isinstance(row[head], int | float | None) for row in rows) for head in heads]
    print("\n".join(aligned(texts, numbers)))


def _text(value: object) -> str:
    """Format a value for a column: four digits of a number, one line of a text.

    >>> _text(0.123456), _text(None), _text(1200)
    ('0.1235', '', '1,200')
    """
    from diffprobe.core.terminal import one_line

    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else one_line(str(value))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of records; expected at least 1")
    return int(text)
