"""Small HTML tables that notebooks show for an object, for its `_repr_html_`. Standard library only."""

from collections.abc import Mapping, Sequence
from html import escape

from diffprobe.core.terminal import one_line

MAX_ROWS = 30
"""Rows that are shown of a table; the number of the others is stated."""


def facts_html(title: str, facts: Mapping[str, object], *, tables: Sequence[str] = ()) -> str:
    """Return HTML with a heading and a fact per line. Control characters are shown as text.

    Args:
        title: the heading.
        facts: name -> value; a value None or "" leaves its line out.
        tables: further HTML, see `rows_html`.

    """
    lines = [
        f'<tr><th style="text-align:left">{_text(name)}</th><td style="text-align:left">{_text(value)}</td></tr>'
        for name, value in facts.items()
        if value is not None and value != ""
    ]
    return f"<div><b>{_text(title)}</b><table>{''.join(lines)}</table>{''.join(tables)}</div>"


def rows_html(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return an HTML table; of more than `MAX_ROWS` rows the first are shown, and the number of the others."""
    shown = [head, *rows[:MAX_ROWS]]
    tags = ["th", *["td"] * (len(shown) - 1)]
    lines = [
        "<tr>" + "".join(f"<{tag}>{_text(value)}</{tag}>" for value in row) + "</tr>"
        for tag, row in zip(tags, shown, strict=True)
    ]
    more = f"<p>... and {len(rows) - MAX_ROWS} more rows</p>" if len(rows) > MAX_ROWS else ""
    return f"<table>{''.join(lines)}</table>{more}"


def _text(value: object) -> str:
    return escape(one_line(str(value)))
