"""Certificates as Markdown tables, several side by side, as in model cards."""

from collections.abc import Sequence

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.markdown_table import markdown_table
from diffprobe.report.pages.certificate import row

METHOD = "method"
"""`probe` of the records of the certified method; baselines have their own names."""


def certificate_tables(named: Sequence[tuple[str, RunResult]]) -> str:
    """Return the tables of certificates: the verdicts, and the checks of each method.

    Args:
        named: what the certified method is called in the tables, and its record of kind "certificate".

    Raises: ConfigError for two certificates of one name.
    """
    names = [name for name, _ in named]
    if len(set(names)) < len(names):
        raise ConfigError(f"two certificates have one name: {', '.join(names)}.", fix="name them apart")
    return "\n\n".join([_verdicts(named), _checks(named)]) + "\n"


def _verdicts(named: Sequence[tuple[str, RunResult]]) -> str:
    rows = []
    for name, result in named:
        verdict, *checks = result.metrics
        ruled = [check for check in checks if check.detail["passed"] is not None]
        own = [check for check in ruled if check.probe == METHOD]
        baselines = list(dict.fromkeys(str(check.probe) for check in ruled if check.probe != METHOD))
        failed = [f"{one} {_passed([check for check in ruled if check.probe == one])}" for one in baselines]
        rows.append([name, str(verdict.detail["verdict"]), _passed(own), "; ".join(failed)])
    return markdown_table(["method", "verdict", "checks passed", "baselines, checks passed"], rows)


def _passed(checks: Sequence[MetricRecord]) -> str:
    return f"{sum(bool(check.detail['passed']) for check in checks)} of {len(checks)}"


def _checks(named: Sequence[tuple[str, RunResult]]) -> str:
    rows = []
    for name, result in named:
        for check in result.metrics[1:]:
            if check.probe != METHOD:
                continue
            found = row(check.name, check.target, check.value, check.n, check.detail)
            null = check.detail.get("null")
            p = f"{null['p']:.2g} ({null['smallest_p']:.2g})" if null else ""
            rule = found["rule"].partition(" (")[0]
            rows.append([name, found["name"], found["value"], found["interval"], p, rule, found["verdict"], found["n"]])
    heads = ["method", "check", "value", "interval", "p (smallest)", "has to be", "verdict", "n"]
    return markdown_table(heads, rows)
