"""The result of `diffprobe eval backbone` as Markdown tables: metrics with controls and paired differences, accuracy by
attribute, denoising error, gates. Model cards have these tables.
"""

from collections.abc import Sequence
from typing import Any

from diffprobe.config.parse import parse
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.evaluation.caption_accuracy import BY
from diffprobe.evaluation.gates import DIFFERENCES, Gate, check_gates
from diffprobe.report.markdown_table import markdown_table

TABLES_FILE = "tables.md"
"""Name of the file in the folder of a run that has the tables."""
_ERROR = "denoising_error_t"
_SHUFFLED = "shuffled_captions"


def backbone_tables(result: RunResult) -> str:
    """Return the tables of an evaluation in Markdown, separated by empty lines; a table without rows is left out.

    Args:
        result: a record of kind "backbone_eval".
    """
    tables = (_metrics(result.metrics), _by_attribute(result.metrics), _errors(result.metrics), _gates(result))
    return "\n\n".join(table for table in tables if table) + "\n"


def _metrics(metrics: Sequence[MetricRecord]) -> str:
    rows = []
    for record in metrics:
        if record.name.startswith(_ERROR):
            continue
        controls = "; ".join(f"{name} {value:.4g}" for name, value in record.controls.items())
        differences = "; ".join(
            f"{name} {found['estimate']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"
            for name, found in record.detail.get(DIFFERENCES, {}).items()
        )
        value = f"{record.value:.4g}{_interval(record.detail.get('interval'))}"
        rows.append([record.name, record.split, f"{record.n:,}", value, controls, differences])
    return markdown_table(["metric", "split", "n", "value", "controls", "difference to control"], rows)


def _by_attribute(metrics: Sequence[MetricRecord]) -> str:
    splits = list(dict.fromkeys(record.split for record in metrics))
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for record in metrics:
        for attribute, values in record.detail.get(BY, {}).items():
            for value, found in values.items():
                row = cells.setdefault((record.name, attribute, value), {})
                row[record.split] = f"{found['accuracy']:.3f} (n={found['n']:,})"
    return markdown_table(
        ["metric", "attribute", "value", *splits],
        [[*key, *(row.get(split, "") for split in splits)] for key, row in cells.items()],
    )


def _errors(metrics: Sequence[MetricRecord]) -> str:
    found = [record for record in metrics if record.name.startswith(_ERROR)]
    timesteps = list(dict.fromkeys(record.name.removeprefix(_ERROR) for record in found))
    rows = []
    for split in dict.fromkeys(record.split for record in found):
        of_split = [record for record in found if record.split == split]
        rows.append([f"{split}, own caption", *(f"{record.value:.4f}" for record in of_split)])
        rows.append([f"{split}, other caption", *(f"{record.controls[_SHUFFLED]:.4f}" for record in of_split)])
    return markdown_table(["denoising error at t", *timesteps], rows)


def _gates(result: RunResult) -> str:
    gates = {name: parse(Gate, tree, at=f"gates.{name}") for name, tree in (result.config["gates"] or {}).items()}
    rows = [
        [check.metric, check.required, check.measured, "reached" if check.reached else "missed"]
        for check in check_gates(gates, result.metrics)
    ]
    return markdown_table(["gate", "required", "measured", ""], rows)


def _interval(ends: Any) -> str:
    return f" [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else ""
