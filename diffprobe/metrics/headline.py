"""The score that stands for a run in lists and dashboards: one value per metric, chosen on val and read on test."""

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.metrics import described

_UNREGISTERED = (
    "auroc", "loss_recovered", "r2", "caption_recall_1", "caption_recall_10", "image_recall_1", "image_recall_10",
)  # fmt: skip
"""Metrics of which more is better that no probe chooses, so that they are not in the registry."""


def headline(result: RunResult, metric: str | None = None) -> MetricRecord | None:
    """Return the record that stands for a run in a list: on test, at the cell, target and probe that are best on val.

    Args:
        metric: name of the metric; None takes the first registered one that the run has, else the run's first.

    Returns: the best record of another split where nothing was measured on val, or nothing there on test; None if the
        run does not have the metric.
    """
    order = list(described())
    names = dict.fromkeys(record.name for record in result.metrics)
    wanted = metric or min(names, key=lambda name: order.index(name) if name in order else len(order), default=None)
    records = [record for record in result.metrics if record.name == wanted]
    for split in ("val", "test", "train"):
        of_split = [record for record in records if record.split == split]
        if of_split:
            lowest = is_higher_better(of_split[0].name) is False
            best = (min if lowest else max)(of_split, key=lambda record: record.value)
            same_place = [record for record in records if record.split == "test" and place_of(record) == place_of(best)]
            return same_place[0] if same_place else best
    return records[0] if records else None


def better_first(record: MetricRecord) -> float:
    """Return a number that is smaller for a better record of the same metric, for sorting."""
    return record.value if is_higher_better(record.name) is False else -record.value


def is_higher_better(metric: str) -> bool | None:
    """Return which end of a metric is better; None for neither, or for an unknown metric."""
    if metric in _UNREGISTERED:
        return True
    known = described().get(metric)
    return None if known is None else known.higher_is_better


def place_text(record: MetricRecord) -> str:
    """Return the cell, target and probe of a record in one line, without those that it does not have."""
    return " ".join(part for part in place_of(record) if part)


def place_of(record: MetricRecord) -> tuple[str | None, str | None, str | None]:
    """Return the cell, target and probe of a record."""
    return record.cell, record.target, record.probe
