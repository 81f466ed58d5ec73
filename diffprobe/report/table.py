"""Tables as text: Markdown, CSV, LaTeX. Owns their wording; what stands in them is `report/table_data.py`.

Markdown and LaTeX round and mark; CSV holds one line an entry, unrounded, with everything that is known about it.
"""

import csv
import io
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Literal, assert_never

from diffprobe.core.result import RunResult
from diffprobe.report.footnotes import Notes, table_notes
from diffprobe.report.latex import render_latex
from diffprobe.report.spec import TableSpec
from diffprobe.report.table_data import Entry, Table, TableRow, build_table

Format = Literal["markdown", "csv", "latex"]
FORMATS: tuple[Format, ...] = ("markdown", "csv", "latex")
_WIDTH = 110


def render(results: Sequence[RunResult], spec: TableSpec, format: Format = "markdown") -> str:
    """Render a table from results: a pure function, ending in one newline.

    Raises: what `build_table` raises.
    """
    table = build_table(results, spec)
    if format == "markdown":
        return render_markdown(table)
    if format == "csv":
        return render_csv(table)
    if format == "latex":
        return render_latex(table)
    assert_never(format)


def render_all(results: Sequence[RunResult], specs: Sequence[TableSpec], format: Format = "markdown") -> str:
    """Render several tables behind each other; CSV says its columns once where all have the same.

    Raises: what `build_table` raises.
    """
    texts = [render(results, spec, format) for spec in specs]
    if format != "csv":
        return "\n".join(texts)
    heads, bodies = zip(*(text.split("\n", 1) for text in texts), strict=True)
    return f"{heads[0]}\n{''.join(bodies)}" if len(set(heads)) == 1 else "\n".join(texts)


def render_markdown(table: Table) -> str:
    """Render a table for a README and a terminal: columns aligned, text wrapped; bold = best of its block."""
    spec, notes = table.spec, table_notes(table)
    heads = [axis.title or axis.field for axis in spec.rows]
    heads += [spec.columns.label(value) for value in table.columns] + [control.title for control in spec.controls]
    body = [[_escape(head) for head in heads]]
    for _, rows in table.blocks():
        best = table.best(rows)
        body += [_cells(table, row, best, notes) for row in rows]
    text = [f"**{_escape(spec.title)}**", "", *_grid(body, n_left=len(spec.rows)), ""]
    if spec.caption:
        text += [*_wrap(_escape(spec.caption)), ""]
    items = [line for note in notes.lines for line in _wrap(f"- {_escape(note)}", indent="  ")]
    return "\n".join([*text, *items]).rstrip() + "\n"


def _grid(rows: Sequence[Sequence[str]], *, n_left: int) -> list[str]:
    """Align the columns of a Markdown table, the first `n_left` to the left, so that its source reads as a table."""
    widths = [max(3, *(_columns(cell) for cell in column)) for column in zip(*rows, strict=True)]

    def pad(cell: str, i: int) -> str:
        space = " " * (widths[i] - _columns(cell))
        return cell + space if i < n_left else space + cell

    rule = [":" + "-" * (w - 1) if i < n_left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    head, *body = [[pad(cell, i) for i, cell in enumerate(row)] for row in rows]
    return [_line(cells) for cells in (head, rule, *body)]


def _columns(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _wrap(text: str, indent: str = "") -> list[str]:
    """Break a paragraph into lines; left whole where a line would start with what Markdown takes for a mark."""
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    marked = any(re.match(r"\s*([-+=#>]|\d+[.)]\s)", line) for line in lines[1:])
    return [text] if marked else lines


def _cells(table: Table, row: TableRow, best: float | None, notes: Notes) -> list[str]:
    spec = table.spec
    cells = [_escape(axis.label(value)) for axis, value in zip(spec.rows, row.values, strict=True)]
    cells += [_entry(table, entry, best, notes) for entry in row.entries]
    return cells + [spec.missing if control is None else spec.number.show(control) for control in row.controls]


def _entry(table: Table, entry: Entry, best: float | None, notes: Notes) -> str:
    number = table.spec.number
    if entry.value is None:
        text = table.spec.missing
    else:
        text = number.show(entry.value)
        if entry.value == best:
            text = f"**{text}**"
        if entry.spread is not None:
            text += f" ± {number.show(entry.spread)}"
        if table.beats_controls(entry) is False:
            text += " ‡"
    comparison = entry.comparison
    if comparison is None:
        return text
    mark = f"{number.show(comparison.published.value)} [{notes.marks[comparison.note]}]"
    if comparison.delta is None:
        return f"{text} ({mark})"
    return f"{text} ({mark}, {number.show(comparison.delta, signed=True)}{'' if comparison.within else ' !'})"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """Keep a text from opening a column, markup or HTML in a Markdown table."""
    text = re.sub(r"&(?=#|\w+;)", "&amp;", text).replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # inside a word an underscore is no markup
    return " ".join(text.split())


def render_csv(table: Table) -> str:
    """Render one line an entry: place, value, seeds, every control, the published number. Empty = missing."""
    spec = table.spec
    fields = [axis.field for axis in (*spec.rows, spec.columns)]
    names = sorted(
        {name for entry in table.entries() for name in entry.controls} | {control.name for control in spec.controls}
    )
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = [*fields, "metric", "status", "value", "spread", "n_seeds", "n", *(f"control_{name}" for name in names)]
    writer.writerow([*head, "published", "delta", "tolerance", "within_tolerance", "source", "provenance"])
    for entry in table.entries():
        measured = entry.value is not None
        line: list[object] = [entry.where[name] for name in fields]
        line += [spec.metric, "measured" if measured else "missing", entry.value, entry.spread]
        line += [entry.n_seeds, entry.n] if measured else [None, None]
        line += [entry.controls.get(name) for name in names]
        comparison = entry.comparison
        if comparison is None:
            line += [None] * 6
        else:
            number = comparison.published
            line += [number.value, comparison.delta, number.tolerance, comparison.within]
            line += [number.source, number.provenance]
        writer.writerow([_plain(value) for value in line])
    return buffer.getvalue()


def _plain(value: object) -> object:
    """Keep floats readable without losing digits that matter, and text from starting a spreadsheet formula."""
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, str) and value[:1] in "=+-@\t\r" and value:
        return "'" + value
    return value
