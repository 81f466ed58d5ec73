"""``diffprobe certify``: score a method against the planted truth of `scenes`."""

import argparse
from typing import TYPE_CHECKING

from diffprobe.cli.arguments import add_check, add_keys, settings_tree

if TYPE_CHECKING:
    from diffprobe.core.result import RunResult

GROUP = "meaning"
HELP = "score a direction, audit, dictionary or probe on planted truth"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the method, its kind, the settings and the output folder."""
    parser.add_argument(
        "method", metavar="METHOD", help="a saved method (file or folder), or module:callable, which is imported"
    )
    add_keys(parser, "settings, for example backbone=pixels; the keys of each kind are in the documentation")
    parser.add_argument("--kind", metavar="KIND", help="kind of the method; needed for a callable (default: that of "
                        "the file or folder)")  # fmt: skip
    parser.add_argument("--output", default="runs", metavar="FOLDER", help="folder of runs (default: runs)")
    add_check(parser)


def run(args: argparse.Namespace) -> int:
    """Print the checks. Returns 0 if the method passed, else 1."""
    from diffprobe.evaluation.certify import PAGE_FILE, certify, load_settings, open_method

    tree = settings_tree(args.keys)
    method, kind = open_method(args.method, args.kind)
    config = load_settings(kind, tree, dict.fromkeys(tree, ("the command line", 0)))
    if args.check:
        print("the configuration is valid")
        return 0
    from diffprobe.core.result import read_result

    certificate, path = certify(args.method, kind, config, output=args.output)
    print(_table(read_result(path)))
    for name, reason in certificate.not_measured.items():
        print(f"not measured: {name}: {reason}")
    for name in certificate.passing_baselines:
        print(f"not valid: the baseline '{name}' has to fail, and passed")
    print(f"verdict: {certificate.verdict}")
    print(f"result: {path}")
    print(f"page: {path.with_name(PAGE_FILE)}")
    return 0 if certificate.verdict == "pass" else 1


def _table(result: "RunResult") -> str:
    from diffprobe.core.columns import aligned
    from diffprobe.report.pages.certificate import row

    heads = ["of", "check", "value", "interval", "p", "has to be", "verdict"]
    rows = [heads]
    for record in result.metrics[1:]:
        found = row(record.name, record.target, record.value, record.n, record.detail)
        p = f"{record.detail['null']['p']:.2g}" if "null" in record.detail else ""
        rule = found["rule"].partition(" (")[0]
        rows.append([record.probe or "", found["name"], found["value"], found["interval"], p, rule, found["verdict"]])
    return "\n".join(aligned(rows, [False, False, True, False, True, False, False]))
