"""The numbers of an audit per axis and subject, from its result alone: rows, the CSV file, lines for the terminal."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields

from diffprobe.core.columns import aligned
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.core.terminal import one_line
from diffprobe.report.table import csv_value

_SHOWN = 20
"""Subjects at either end that the terminal shows of more than twice as many."""


@dataclass(frozen=True, kw_only=True)
class SubjectRow:
    """One subject on one axis; None for what was not measured. The fields are the columns of the CSV file."""

    axis: str
    subject: str
    group: str | None
    cluster: int | None
    """Number of the cluster, from 1."""
    association: float
    """Cosine with the direction."""
    association_low: float | None
    association_high: float | None
    projection: float
    """In standard deviations of single prompts over seeds."""
    projection_low: float | None
    projection_high: float | None
    p: float | None
    smallest_p: float | None
    q: float | None
    random_percentile: float
    """Share of random directions with which the subject is associated less."""
    position: float | None
    """Place between its own variants, -1..1 and beyond."""
    position_low: float | None
    position_high: float | None
    position_p: float | None
    position_q: float | None
    found: bool
    """Whether it is a discovery: by the position, or by the association where there are no variants."""
    words_only: float | None
    """Association by the text encoder alone."""
    default: float | None
    default_low: float | None
    default_high: float | None
    default_q: float | None
    rate: float | None
    """From prompt latents."""
    rate_low: float | None
    rate_high: float | None
    image_rate: float | None
    image_rate_low: float | None
    image_rate_high: float | None
    reference: float | None
    reference_name: str | None
    amplification: float | None
    amplification_low: float | None
    amplification_high: float | None


def subject_rows(result: RunResult) -> list[SubjectRow]:
    """Return the rows of an audit: axes in their order, subjects from the positive to the negative end."""
    summary = result.metrics[0].detail
    clusters = cluster_numbers(result)
    found = {
        (record.name, record.target, record.detail["subject"]): record
        for record in result.metrics if "subject" in record.detail
    }  # fmt: skip
    rows = []
    for record in result.metrics:
        if record.name != "association" or record.target is None:
            continue
        name, detail = record.detail["subject"], record.detail

        def value(kind: str, target: str = record.target, name: str = name) -> MetricRecord | None:
            return found.get((kind, target, name))

        low, high = _ends(record)
        default, rate, image, more = value("default"), value("rate"), value("image_rate"), value("amplification")
        position = value("position")
        projection = detail.get("projection_interval") or (None, None)
        rows.append(SubjectRow(
            axis=record.target, subject=name, group=detail.get("group"), cluster=clusters.get(name),
            association=record.value, association_low=low, association_high=high, projection=detail["projection"],
            projection_low=projection[0], projection_high=projection[1], p=detail["p"],
            smallest_p=detail["smallest_p"], q=detail["q"], found=detail["found"],
            random_percentile=detail["random_percentile"],
            position=_value(position), position_low=_ends(position)[0], position_high=_ends(position)[1],
            position_p=None if position is None else position.detail["p"],
            position_q=None if position is None else position.detail["q"],
            words_only=record.controls.get("words_only"),
            default=_value(default), default_low=_ends(default)[0], default_high=_ends(default)[1],
            default_q=None if default is None else default.detail["q"],
            rate=_value(rate), rate_low=_ends(rate)[0], rate_high=_ends(rate)[1],
            image_rate=_value(image), image_rate_low=_ends(image)[0], image_rate_high=_ends(image)[1],
            reference=None if more is None else more.detail["reference"],
            reference_name=None if more is None else summary["reference"],
            amplification=_value(more), amplification_low=_ends(more)[0], amplification_high=_ends(more)[1],
        ))  # fmt: skip
    order = list(dict.fromkeys(row.axis for row in rows))
    return sorted(rows, key=lambda row: (order.index(row.axis), -row.association, row.subject))


def cluster_numbers(result: RunResult) -> dict[str, int]:
    """Return the number of each subject's cluster, from 1; empty without clusters."""
    for record in result.metrics:
        if record.name == "silhouette":
            clusters = record.detail["clusters"]
            return {name: number for number, one in enumerate(clusters, 1) for name in one["subjects"]}
    return {}


def render_csv(result: RunResult) -> str:
    """Return the CSV file of an audit: a line per axis and subject."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [field.name for field in fields(SubjectRow)]
    writer.writerow(names)
    for row in subject_rows(result):
        writer.writerow([_cell(getattr(row, name)) for name in names])
    return buffer.getvalue()


def terminal_lines(result: RunResult) -> list[str]:
    """Return the table of each axis, and the notes, for the terminal."""
    summary, lines = result.metrics[0].detail, []
    rows = subject_rows(result)
    for axis, ends in summary["axes"].items():
        own = [row for row in rows if row.axis == axis]
        words = {end: ", ".join(one_line(word) for word in ends[end]) for end in ("positive", "negative")}
        lines += [f"{one_line(axis)}: positive is {words['positive']}, negative is {words['negative']}"]
        lines += _table(own)
        lines.append("")
    return [*lines, *(f"note: {note}" for note in summary["notes"])]


def _table(rows: Sequence[SubjectRow]) -> list[str]:
    kinds = [("rate", "rate"), ("image_rate", "image rate"), ("amplification", "amplification")]
    kinds = [(name, head) for name, head in kinds if any(getattr(row, name) is not None for row in rows)]
    positions = rows[0].position is not None
    heads = [
        "subject",
        "association",
        "interval",
        *(["position", "interval"] if positions else []),
        "q",
        "discovery",
        *(text for _, head in kinds for text in (head, "")),
    ]
    table = [heads]
    shown = rows if len(rows) <= 2 * _SHOWN else [*rows[:_SHOWN], *rows[-_SHOWN:]]
    for row in shown:
        line = [
            one_line(row.subject), f"{row.association:+.3f}", interval_text(row.association_low, row.association_high),
        ]  # fmt: skip
        if positions:
            line += [f"{row.position or 0.0:+.3f}", interval_text(row.position_low, row.position_high)]
        q = row.position_q if positions else row.q
        line += ["" if q is None else f"{q:.2g}", "yes" if row.found else ""]
        for name, _ in kinds:
            number = getattr(row, name)
            line.append("" if number is None else f"{number:.3f}")
            line.append(interval_text(getattr(row, f"{name}_low"), getattr(row, f"{name}_high")))
        table.append(line)
    lines = aligned(
        table, [False, True, False, *([True, False] if positions else []), True, False, *([True, False] * len(kinds))]
    )
    if len(shown) < len(rows):
        lines.insert(1 + _SHOWN, f"  ({len(rows) - len(shown)} subjects in between are in the CSV file)")
    return lines


def interval_text(low: float | None, high: float | None) -> str:
    """Format an interval; empty for none.

    >>> interval_text(-0.1, 0.25), interval_text(None, None)
    ('[-0.100, 0.250]', '')
    """
    return "" if low is None or high is None else f"[{low:.3f}, {high:.3f}]"


def _value(record: MetricRecord | None) -> float | None:
    return None if record is None else record.value


def _ends(record: MetricRecord | None) -> tuple[float | None, float | None]:
    found = None if record is None else record.detail.get("interval")
    return (None, None) if found is None else (found[0], found[1])


def _cell(value: object) -> object:
    if value is None:
        return ""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else csv_value(value)
