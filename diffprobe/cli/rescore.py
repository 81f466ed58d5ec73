"""``diffprobe rescore``: metrics, intervals and paired differences from the kept predictions of a run."""

import argparse
import csv
import io
import sys
from typing import TYPE_CHECKING, Any, Literal

from diffprobe.core.columns import aligned
from diffprobe.core.errors import ConfigError
from diffprobe.core.terminal import one_line

if TYPE_CHECKING:
    from diffprobe.core.result import MetricRecord

GROUP = "runs"
HELP = "compute metrics and intervals from the predictions of a run"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the runs, the metrics, the heads, the interval and the format."""
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, or its result.json")
    parser.add_argument("--against", metavar="RUN", help="print paired differences from this run")
    parser.add_argument("--ladder", action="store_true", help="print paired differences from each rung of the ladder "
                        "of controls, runs beside this one")  # fmt: skip
    parser.add_argument("--metric", action="append", default=[], metavar="NAME", help="metric; repeatable (default: "
                        "those of the run); accuracy, balanced_accuracy, macro_f1, log_loss, auroc, average_precision, "
                        "fvu, explained_variance, l0")  # fmt: skip
    parser.add_argument("--split", choices=["test", "val"], default="test", help="split (default: test)")
    fields = "cell, tap, timestep, target, probe or control"
    parser.add_argument(
        "--where", action="append", default=[], metavar="FIELD=VALUE", help=f"choose heads by {fields}; repeatable"
    )
    parser.add_argument(
        "--against-where", action="append", default=[], metavar="FIELD=VALUE",
        help="choose heads of the other run, or the same one's",
    )  # fmt: skip
    parser.add_argument("--per", metavar="ATTRIBUTE", help="one line for each value of an attribute")
    parser.add_argument(
        "--interval", choices=["bootstrap", "expanded"], help="add an interval; expanded: also right with few groups"
    )
    parser.add_argument(
        "--null", choices=["permutation"],
        help="add p from labels permuted by group, and p adjusted for the number of lines",
    )  # fmt: skip
    parser.add_argument("--permutations", type=int, metavar="N", help="number of permutations (default: 1000)")
    parser.add_argument(
        "--group-by",
        metavar="ATTRIBUTE",
        help="resample the groups that share a value (default: the data set's group); 'sample': single samples",
    )
    parser.add_argument("--resamples", type=int, metavar="N", help="number of resamples (default: 1000)")
    parser.add_argument("--level", type=float, metavar="P", help="coverage of the interval (default: 0.95)")
    parser.add_argument("--seed", type=int, metavar="S", help="seed of the resampling (default: 0)")
    parser.add_argument(
        "--format", choices=["table", "json", "csv"], default="table", help="output format (default: table)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the numbers."""
    paired = args.against is not None or bool(args.against_where) or args.ladder
    if args.ladder and (args.against is not None or args.against_where):
        raise ConfigError("--ladder finds the other runs itself.", fix="leave --against and --against-where out")
    if paired and args.per:
        raise ConfigError("--per with a comparison: a difference is over all samples.", fix="leave --per out")
    drawn = {"resamples": args.resamples, "level": args.level, "seed": args.seed, "group_by": args.group_by}
    drawn = {name: value for name, value in drawn.items() if value is not None}
    shared = {name: value for name, value in drawn.items() if args.null is not None and name in ("seed", "group_by")}
    if args.interval is None and len(drawn) > len(shared):
        names = ", ".join("--" + name.replace("_", "-") for name in drawn if name not in shared)
        raise ConfigError(f"{names} without an interval.", fix="--interval bootstrap; or --per for one line per value")
    if args.permutations is not None and args.null is None:
        raise ConfigError("--permutations without a null distribution.", fix="--null permutation")
    if paired and args.null:
        raise ConfigError(
            "--null with a comparison: permuted labels show what one head reads, not a difference.",
            "a difference counts if its interval excludes 0",
            fix="--interval bootstrap; or --null permutation for each run",
        )
    from diffprobe.core.progress import ProgressDisplay
    from diffprobe.runs.rescore import Bootstrap, Permutations, compare, load_run, not_kept, parse_where, rescore

    where, other_where = parse_where(args.where), parse_where(args.against_where)
    method: Literal["percentile", "expanded"] = "expanded" if args.interval == "expanded" else "percentile"
    bootstrap = Bootstrap(**drawn, method=method) if args.interval else None
    null = None
    if args.null:
        null = Permutations(**shared, **({} if args.permutations is None else {"n": args.permutations}))
    one = load_run(args.run_folder, args.split)
    with ProgressDisplay(shown=(bootstrap or null) is not None and sys.stderr.isatty(), transient=True) as display:
        common: dict[str, Any] = {
            "metrics": args.metric,
            "where": where,
            "bootstrap": bootstrap,
            "progress": lambda total: display.bar(total, "rescore", unit="numbers", keep=False),
        }
        if args.ladder:
            from diffprobe.config.controls import LADDER
            from diffprobe.runs.rescore_ladder import compare_ladder, rungs_of

            rungs = rungs_of(args.run_folder)
            records = compare_ladder(one, rungs, **common)
            absent = [name for name in LADDER if name not in rungs]
            if absent:
                print(f"no run of these rungs is beside it: {', '.join(absent)}", file=sys.stderr)
        elif paired:
            other = one if args.against is None else load_run(args.against, args.split)
            records = compare(one, other, other_where=other_where, **common)
        else:
            records = rescore(one, per=args.per, null=null, **common)
    print({"table": _table, "json": _json, "csv": _csv}[args.format](records), end="")
    left = [] if args.metric or paired else not_kept(one)
    if left:
        print(f"not from predictions, see result.json: {', '.join(map(one_line, left))}", file=sys.stderr)
    return 0


def _flat(record: "MetricRecord") -> dict[str, Any]:
    """Return the columns of a record."""
    detail = record.detail
    low, high = detail.get("interval", (None, None))
    flat: dict[str, Any] = {
        "split": record.split, "metric": record.name, "cell": record.cell, "target": record.target,
        "probe": record.probe, "control": detail.get("control"), "n": record.n,
    }  # fmt: skip
    flat |= dict(detail.get("per", {}))
    if "difference" in detail:
        flat |= {f"against_{name}": value for name, value in detail["against"].items()}
        flat |= {"value": detail["difference"][0], "against_value": detail["difference"][1]}
        flat["difference"] = record.value
    else:
        flat["value"] = record.value
    flat |= {"low": low, "high": high}
    if "null" in detail:
        null = detail["null"]
        flat |= {"null_mean": null["mean"], "null_95": null["percentile_95"], "quantile": null["quantile"]}
        flat |= {"p": null["p"], "smallest_p": null["smallest_p"], "p_adjusted": null["p_adjusted"]}
    flat |= {f"control_{name}": value for name, value in record.controls.items()}
    return flat


def _lines(records: "list[MetricRecord]", number: str) -> list[list[str]]:
    """Return a head line and one line per record; columns without any value are left out."""
    rows = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    names = [name for name in names if any(row.get(name) is not None for row in rows)]

    def text(value: object) -> str:
        return "" if value is None else format(value, number) if isinstance(value, float) else one_line(str(value))

    return [[one_line(name) for name in names], *([text(row.get(name)) for name in names] for row in rows)]


def _table(records: "list[MetricRecord]") -> str:
    lines = _lines(records, ".4f")
    text = aligned(lines)
    found = next((record.detail["bootstrap"] for record in records if "bootstrap" in record.detail), None)
    if found:
        unit = "single samples" if found["group_by"] == "sample" else f"values of '{one_line(found['group_by'])}'"
        undefined = max(record.detail["bootstrap"]["undefined"] for record in records)
        text.append(
            f"low, high: {found['level']:.0%} {found.get('method', 'percentile')} bootstrap, {found['resamples']:,} "
            f"resamples of {unit}, "
            f"seed {found['seed']}" + (f"; not defined in up to {undefined} of them" if undefined else "")
        )
        if found["group_by"] == "sample":
            text.append(
                "samples that share a source (variants of one drawing) are not independent: --group-by ATTRIBUTE"
            )
        text += _few_groups([record.detail["bootstrap"] for record in records if "bootstrap" in record.detail])
    if len(records) > 1 and any("difference" in record.detail for record in records) and found:
        text.append(
            f"{len(records)} intervals: at {found['level']:.0%}, one in {round(1 / (1 - found['level']))} excludes 0 "
            "by chance alone"
        )
    text += _null_notes(records)
    return "\n".join(text) + "\n"


def _few_groups(drawn: list[dict[str, Any]]) -> list[str]:
    from diffprobe.analysis.statistics import FEW_GROUPS

    fewest = min(found["n_groups"] for found in drawn)
    if fewest >= FEW_GROUPS or "method" in drawn[0]:
        return []
    return [f"{fewest} groups are few: a percentile interval is then too narrow; --interval expanded"]


def _null_notes(records: "list[MetricRecord]") -> list[str]:
    nulls = [record.detail["null"] for record in records if "null" in record.detail]
    if not nulls:
        return []
    first, n = nulls[0], len(nulls)
    unit = "single samples" if first["group_by"] == "sample" else f"values of '{one_line(first['group_by'])}'"
    found = sum(null["p_adjusted"] <= 0.05 for null in nulls)
    least = max(null["smallest_p"] for null in nulls)
    more = [
        f"a single one of {n} tests cannot reach 0.05: its p is at least {least:.2g}; --permutations N, or more groups"
    ]
    return [
        f"p: one-sided, {first['permutations']:,} permutations of the labels by {unit}, seed {first['seed']}; groups "
        "of one label are permuted whole, other labels within their group",
        f"p_adjusted: Benjamini-Hochberg for {n} {'test' if n == 1 else 'tests'}, the lines above; {found} at 0.05",
        *(more if n * least > 0.05 else []),
    ]


def _csv(records: "list[MetricRecord]") -> str:
    from diffprobe.report.table import csv_value

    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerows([csv_value(cell) for cell in line] for line in _lines(records, ".12g"))
    return buffer.getvalue()


def _json(records: "list[MetricRecord]") -> str:
    import dataclasses

    from diffprobe.core.artifact import dump_json

    return dump_json([dataclasses.asdict(record) for record in records])
