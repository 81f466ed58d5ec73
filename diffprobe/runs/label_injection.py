"""Mark results whose features were computed with a prompt that states something about the sample.

A classifier then reads what the prompt states besides what the backbone sees in the image (Revelio's prompts that name
the class which CLIP predicts, 2411.16725, released code).
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from diffprobe.core.result import MetricRecord

if TYPE_CHECKING:
    from diffprobe.backbones.prompts import Branch
    from diffprobe.features.column_table import ColumnTable
    from diffprobe.features.request import Request

DETAIL = "label_injection"
"""Key of `MetricRecord.detail`: what the prompt stated, for example "class_name" or "zero_shot:MODEL"."""
_WITHOUT_TARGET = ("sae",)
"""Kinds of probes that predict nothing."""


def stated_by(branch: "Branch", table: "ColumnTable | None") -> str:
    """Return what the inputs of a branch state about a sample; empty if all samples have the same input.

    Columns are named as in the template, those of `features.columns` by the origin of their values; several are joined
    by ", ".
    """
    joined = {} if table is None else {name: table.source_of(name) for name in table.used(branch.columns)}
    return ", ".join(dict.fromkeys(joined.get(name, name) for name in branch.columns))


def mark_injection(records: Iterable[MetricRecord], request: "Request", kind: str) -> list[MetricRecord]:
    """Return the records of a run, those on features of such a prompt with `label_injection` in their detail.

    A record that names no cell reads all of them.

    Args:
        records: the records.
        request: what the features were asked for with.
        kind: kind of the probe.
    """
    from diffprobe.backbones.cell import Cell

    found = list(records)
    stated = {branch.condition: stated_by(branch, request.columns) for branch in request.plan.branches}
    if kind in _WITHOUT_TARGET or not any(stated.values()):
        return found
    made = []
    for record in found:
        conditions = list(stated) if record.cell is None else [Cell.parse(record.cell).condition]
        text = ", ".join(dict.fromkeys(stated[name] for name in conditions if stated.get(name)))
        made.append(replace(record, detail={**record.detail, DETAIL: text}) if text else record)
    return made
