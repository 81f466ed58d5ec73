"""Tables that notebooks show: escaped, without empty facts, bounded."""

from diffprobe.core.facts_html import MAX_ROWS, facts_html, rows_html


def test_facts_are_escaped_and_empty_ones_left_out() -> None:
    shown = facts_html("a <b>", {"name": "<script>\x1b[1m", "none": None, "text": "", "zero": 0})
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "\x1b" not in shown and "a &lt;b&gt;" in shown
    assert "none" not in shown and "text<" not in shown and "zero" in shown


def test_many_rows_are_cut_and_counted() -> None:
    shown = rows_html(["n"], [[number] for number in range(MAX_ROWS + 7)])
    assert shown.count("<tr>") == MAX_ROWS + 1 and "7 more rows" in shown
    assert "more rows" not in rows_html(["n"], [[1]])
