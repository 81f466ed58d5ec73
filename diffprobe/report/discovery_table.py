"""The numbers of a discovery per component, from its result alone: the CSV file, and lines for the terminal."""

import csv
import io
from typing import Any

from diffprobe.core.columns import aligned
from diffprobe.core.result import MetricRecord, RunResult
from diffprobe.core.terminal import one_line
from diffprobe.report.table import csv_value

COLUMNS = (
    "number", "kind", "hidden", "frequency", "smaller_end", "separation", "evidence", "distinctiveness", "rarity",
    "kurtosis", "stability", "subject_share", "subject_share_by_chance", "p", "smallest_p", "q", "high_subjects",
    "low_subjects", "named_by", "words_explained", "words_low", "words_high", "words_q", "reader_factor",
    "reader_value", "reader_auroc", "reader_planted",
)  # fmt: skip
"""Columns of the CSV file."""
_SHOWN = 6
"""Subjects and phrases that the terminal shows of more."""


def component_records(result: RunResult) -> list[MetricRecord]:
    """Return the records of the components, in the order of the page."""
    return [record for record in result.metrics if record.name == "subject_share"]


def render_csv(result: RunResult) -> str:
    """Return the CSV file of a discovery: a line per component, also of those without structure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for record in component_records(result):
        row = _row(record)
        writer.writerow([_cell(row.get(name)) for name in COLUMNS])
    return buffer.getvalue()


def _row(record: MetricRecord) -> dict[str, Any]:
    detail = record.detail
    words, reader = detail.get("words", {}), detail.get("reader", {})
    low, high = words.get("interval", (None, None))
    return {
        **{name: detail[name] for name in COLUMNS if name in detail},
        "number": int(record.target or 0), "hidden": detail["is_hidden"], "subject_share": record.value,
        "subject_share_by_chance": record.controls["permuted_subjects"],
        "frequency": detail["frequency"] if detail["has_groups"] else None,
        "high_subjects": "; ".join(detail["high_subjects"]), "low_subjects": "; ".join(detail["low_subjects"]),
        "named_by": "; ".join(f"{word['phrase']} {word['effect']:+.2f}" for word in detail["named_by"]),
        "words_explained": words.get("explained"), "words_low": low, "words_high": high, "words_q": words.get("q"),
        **{f"reader_{name}": reader.get(name) for name in ("factor", "value", "auroc")},
        "reader_planted": "; ".join(reader.get("planted", ())),
    }  # fmt: skip


def terminal_lines(result: RunResult) -> list[str]:
    """Return the table of structured components, the counts and the notes, for the terminal."""
    summary = result.metrics[0]
    about = summary.detail
    shown = [record for record in component_records(result) if record.detail["kind"] != "unstructured"]
    with_reader = any("reader" in record.detail for record in shown)
    heads = ["", "kind", "rarer group", "stability", "between", "q", "higher in the rarer group", "lower", "words"]
    table = [[*heads, *(["most like"] if with_reader else [])]]
    for record in shown:
        detail = record.detail
        line = [
            record.target or "", kind_text(detail), share_text(detail), f"{detail['stability']:.2f}",
            f"{record.value:.3f}", f"{detail['q']:.2g}", _some(detail["high_subjects"]), _some(detail["low_subjects"]),
            _some([f"{word['phrase']} {word['effect']:+.1f}" for word in detail["named_by"]]),
        ]  # fmt: skip
        table.append([*line, *([reader_text(detail)] if with_reader else [])])
    counts = about["counts"]
    return [
        *(aligned(table, [False, False, True, True, True, True, *([False] * (len(table[0]) - 6))]) if shown else []),
        f"{len(shown)} of {about['n_components']} components have structure "
        f"({summary.controls['normal_random_numbers']:.0f} of normal random numbers): {counts['association']} "
        f"associations ({about['hidden']} hidden; {about['associations_by_chance']:.2f} for permuted subjects), "
        f"{counts['free']} free, {counts['identity']} identities",
        "between: share of variance between subjects; q: subjects permuted, Benjamini-Hochberg over components",
        *(f"note: {note}" for note in about["notes"]),
    ]


def kind_text(detail: dict[str, Any]) -> str:
    """Return the kind of a component as shown."""
    return f"{'hidden ' if detail['is_hidden'] else ''}{detail['kind']}"


def share_text(detail: dict[str, Any]) -> str:
    """Return the frequency of the smaller group; where there are no groups, that the component has a heavy tail."""
    return f"{detail['frequency']:.1%}" if detail["has_groups"] else "heavy tail"


def reader_text(detail: dict[str, Any]) -> str:
    """Return the factor that the reader finds a component most like; empty without reader."""
    reader = detail.get("reader")
    return "" if reader is None else f"{reader['factor']} {reader['value']} (AUROC {reader['auroc']:.3f})"


def _some(texts: list[str]) -> str:
    shown = ", ".join(one_line(text) for text in texts[:_SHOWN])
    return f"{shown} +{len(texts) - _SHOWN}" if len(texts) > _SHOWN else shown


def _cell(value: object) -> object:
    if value is None:
        return ""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else csv_value(value)
