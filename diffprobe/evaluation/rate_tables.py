"""Results of `diffprobe eval rates` as Markdown tables, of one model or of several side by side, as in model cards."""

from collections.abc import Sequence

from diffprobe.analysis.rate_comparison import MEASURES
from diffprobe.core.errors import ConfigError
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.markdown_table import markdown_table

TABLES_FILE = "tables.md"
"""Name of the file in the folder of a run that has the tables."""
_COMPARED = (*MEASURES, "coverage")
_QUALITIES = ("half_committed", "prompted_role", "sensitivity", "specificity")


def rate_tables(results: Sequence[RunResult]) -> str:
    """Return the tables of one evaluation or several: comparison with each world, qualities, agreement of the reader,
    rates by role.

    Args:
        results: records of kind "rates_eval", with distinct models.
    Raises: ConfigError for two results of one model.
    """
    models = [str(result.config["model"]) for result in results]
    if len(set(models)) < len(models):
        raise ConfigError(f"two results are of one model: {', '.join(models)}.", fix="leave one out")
    named = list(zip(models, results, strict=True))
    tables = [_worlds(named), _shares(named, _QUALITIES), _agreement(named), _rates(named)]
    return "\n\n".join(table for table in tables if table) + "\n"


def _worlds(named: Sequence[tuple[str, RunResult]]) -> str:
    rows = []
    for model, result in named:
        of = {(record.target, record.name): record for record in result.metrics if record.name in _COMPARED}
        for world in dict.fromkeys(world for world, _ in of):
            own = " (its own)" if of[world, "coverage"].detail["own_world"] else ""
            cells = [_with_interval(of.get((world, name))) for name in _COMPARED]
            rows.append([model, f"{world}{own}", *cells])
    return markdown_table(["model", "rates of", *(name.replace("_", " ") for name in _COMPARED)], rows)


def _shares(named: Sequence[tuple[str, RunResult]], names: Sequence[str]) -> str:
    rows = []
    for model, result in named:
        of = {record.name: record for record in result.metrics if record.name in names}
        rows.append([model, *(_with_interval(of.get(name)) for name in names)])
    return markdown_table(["model", *(name.replace("_", " ") for name in names)], rows)


def _agreement(named: Sequence[tuple[str, RunResult]]) -> str:
    found = {
        model: {str(record.target): record for record in result.metrics if record.name == "reader_agreement"}
        for model, result in named
    }
    factors = list(dict.fromkeys(factor for of in found.values() for factor in of))
    rows = [[model, *(_with_interval(of.get(factor)) for factor in factors)] for model, of in found.items()]
    return markdown_table(["reader agrees with labels", *factors], rows)


def _rates(named: Sequence[tuple[str, RunResult]]) -> str:
    records = [
        {str(record.target): record for record in result.metrics if record.name == "rate"} for _, result in named
    ]
    roles = list(dict.fromkeys(role for of in records for role in of))
    head = ["role"]
    for model, result in named:
        head += [f"planted, {result.config['world']}", model]
    rows = []
    for role in roles:
        row = [role]
        for (_, result), of in zip(named, records, strict=True):
            record = of.get(role)
            planted = "" if record is None else f"{record.detail['planted'][result.config['world']]:.2f}"
            row += [planted, _with_interval(record)]
        rows.append(row)
    return markdown_table(head, rows)


def _with_interval(record: MetricRecord | None) -> str:
    if record is None:
        return ""
    ends = record.detail.get("interval")
    return f"{record.value:.2f}" + (f" [{ends[0]:.2f}, {ends[1]:.2f}]" if ends else "")
