"""Entries of tables and records of results as text: one formatter for Markdown, LaTeX, pages, figures and the terminal.

A format supplies its markup as an `EntryStyle`; what is printed, and in which order, is decided here alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.report.filled_table import Entry, TableData


@dataclass(frozen=True, kw_only=True)
class ComparisonText:
    """A published number and its comparison with a measured one, formatted for print."""

    published: str
    """The published number."""
    delta: str | None
    """Measured minus published, with sign; None if nothing was measured."""
    is_within: bool | None
    """Whether the measured value is within the tolerance; None if nothing was measured."""
    note: str
    """Source and provenance of the published number."""


@dataclass(frozen=True, kw_only=True)
class EntryStyle:
    """The markup of one output format. The functions return what is appended to the entry, separators included."""

    escape: Callable[[str], str]
    """Escape text for the format."""
    bold: Callable[[str], str]
    """Mark the best value of a block."""
    spread: Callable[[str], str]
    """Append the standard deviation over seeds."""
    below_control: str
    """Appended to a value that does not beat its strongest control."""
    injected: str
    """Appended to a value of features whose prompt states something about the sample."""
    comparison: Callable[[ComparisonText], str]
    """Append a published number."""


FAILED = "failed"
"""Text of an entry whose run failed."""
PLAIN = EntryStyle(
    escape=lambda text: text,
    bold=lambda text: text,
    spread=lambda text: "",
    below_control=" ‡",
    injected=" †",
    comparison=lambda comparison: "",
)
"""The number and its mark alone, as in the cells of a heat map."""


def format_entry(table: TableData, entry: Entry, *, best: float | None, style: EntryStyle) -> str:
    """Format one entry of a table.

    Args:
        table: the table of the entry; its spec gives the number format and the text of missing entries.
        entry: the entry.
        best: best value of the block, which is marked; None marks none.
        style: markup of the output format.
    """
    show = table.spec.number.show
    if entry.value is None:
        text = style.escape(FAILED if entry.failure is not None else table.spec.missing)
    else:
        text = style.escape(show(entry.value))
        if entry.value == best:
            text = style.bold(text)
        if entry.spread is not None:
            text += style.spread(show(entry.spread))
        if table.beats_controls(entry) is False:
            text += style.below_control
        if entry.injected:
            text += style.injected
    comparison = entry.comparison
    if comparison is None:
        return text
    delta = None if comparison.delta is None else show(comparison.delta, signed=True)
    return text + style.comparison(
        ComparisonText(
            published=show(comparison.published.value), delta=delta, is_within=comparison.within, note=comparison.note
        )
    )


def format_control(table: TableData, value: float | None) -> str:
    """Format a control of a row; the text of missing entries if it was not measured."""
    return table.spec.missing if value is None else table.spec.number.show(value)


def format_record(record: MetricRecord) -> str:
    """Format one record of a result in one line: split, metric, value, interval, samples, place, controls.

    >>> from diffprobe.core.result import MetricRecord
    >>> format_record(
    ...     MetricRecord(name="accuracy", value=0.75, split="test", n=1280, target="style", controls={"chance": 0.5})
    ... )
    'test accuracy = 0.75  n=1,280  style  (controls: chance 0.5)'
    """
    interval = record.detail.get("interval")
    spread = f" [{interval[0]:.3g}, {interval[1]:.3g}]" if interval else ""
    place = " ".join(part for part in (record.cell, record.target) if part)
    controls = ", ".join(f"{name} {value:.4g}" for name, value in record.controls.items())
    parts = [f"{record.split} {record.name} = {record.value:.4g}{spread}", f"n={record.n:,}", place]
    parts += [f"(controls: {controls})"] if controls else []
    injected = record.detail.get("label_injection")
    return "  ".join([*filter(None, parts), *([f"(label injection: {injected})"] if injected else [])])


def published_lines(record: MetricRecord, result: RunResult) -> list[str]:
    """Return a line with the published number of a dense head's record and the difference to it; none without one."""
    published = result.config.get("published")
    if not published or record.split != "test" or record.name != published["metric"]:
        return []
    if record.probe is None or record.probe != result.config.get("recipe"):
        return []
    delta = record.value - published["value"]
    return [
        f"  published {published['value']:.4g} ({published['source']}; {published['provenance']}), delta {delta:+.4f}"
    ]
