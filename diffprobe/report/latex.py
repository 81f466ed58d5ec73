"""Tables for papers: LaTeX with booktabs and threeparttable, whose notes bear the marks of the entries."""

import re
import unicodedata

from diffprobe.core.terminal import one_line
from diffprobe.report.entry import ComparisonText, EntryStyle, format_control, format_entry
from diffprobe.report.filled_table import TableData, TableRow
from diffprobe.report.footnotes import OUTSIDE, Note, Notes, table_notes
from diffprobe.report.mark_notes import BELOW, INJECTED

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "‡": r"$^{\ddagger}$", "×": r"$\times$", "—": "---", "–": "--", "−": "$-$",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}",  # after a line break, a bare [ or * would be its argument
}  # fmt: skip

_SYMBOLS = {BELOW: r"$\ddagger$", INJECTED: r"$\dagger$"}
"""Mark -> its LaTeX; others stand for themselves."""
PACKAGES = "% packages: booktabs, threeparttable"
"""First line of a table: what its preamble needs."""


def render_latex(table: TableData, *, label: str | None = None) -> str:
    r"""Render a table as a `table` environment: best entries in bold, rules between blocks, notes with marks below.

    Args:
        label: name for `\ref`, without its prefix `tab:`; None for that of the title.
    """
    spec, notes = table.spec, table_notes(table)
    n_left, n_controls = len(spec.rows), len(spec.controls)
    layout = "l" * n_left + "r" * len(table.columns) + ("@{\\qquad}" + "r" * n_controls if n_controls else "")
    heads = [axis.title or axis.field for axis in spec.rows]
    heads += [spec.columns.label(value) for value in table.columns] + [control.title for control in spec.controls]
    lines = [
        PACKAGES,
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{_caption(spec.heading, spec.caption)}}}",
        rf"\label{{tab:{label or label_of(spec.title)}}}",
        r"\begin{threeparttable}",
        rf"\begin{{tabular}}{{{layout}}}",
        r"\toprule",
        _line([escape_latex(head) for head in heads]),
    ]
    style = _style(notes)
    for value, rows in table.blocks():
        lines.append(r"\midrule")
        best = table.best(rows)
        for i, row in enumerate(rows):
            lines.append(_line(_cells(table, row, best, style, repeat=value is None or i == 0)))
    lines += [r"\bottomrule", r"\end{tabular}", r"\begin{tablenotes}[flushleft]\footnotesize"]
    lines += [_item(note) for note in notes.notes]
    return "\n".join([*lines, r"\end{tablenotes}", r"\end{threeparttable}", r"\end{table}"]) + "\n"


def label_of(title: str) -> str:
    """Return the name of a table for references: its title in ASCII letters, digits and hyphens.

    >>> label_of("Accuracy of group, by layer")
    'accuracy-of-group-by-layer'
    """
    plain = unicodedata.normalize("NFKD", title).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:60].strip("-") or "table"


def _caption(title: str, caption: str) -> str:
    head = title if title.endswith((".", "!", "?")) or not caption.strip() else f"{title}."
    return escape_latex(" ".join([head, *caption.split()]))


def _item(note: Note) -> str:
    mark = f"[{_SYMBOLS.get(note.mark, note.mark)}]" if note.mark else ""
    return rf"\item{mark} {escape_latex(note.text)}"


def escape_latex(text: str) -> str:
    r"""Escape text for LaTeX, in one line; control characters are shown as text.

    >>> escape_latex("50% of up_blocks")
    '50\\% of up\\_blocks'
    """
    return "".join(_SPECIAL.get(char, char) for char in one_line(text))


def _cells(table: TableData, row: TableRow, best: float | None, style: EntryStyle, *, repeat: bool) -> list[str]:
    """Return the cells of one row; the outermost label appears only in the first row of its block."""
    labels = [escape_latex(axis.label(value)) for axis, value in zip(table.spec.rows, row.values, strict=True)]
    cells = labels if repeat else ["", *labels[1:]]
    cells += [format_entry(table, entry, best=best, style=style) for entry in row.entries]
    return cells + [escape_latex(format_control(table, control)) for control in row.controls]


def _style(notes: Notes) -> EntryStyle:
    def comparison(found: ComparisonText) -> str:
        mark = rf"{found.published}\tnote{{{notes.marks[found.note]}}}"
        if found.delta is None:
            return f" ({mark})"
        outside = "" if found.is_within else _mark(OUTSIDE)
        return f" ({mark}, ${found.delta}${outside})"

    return EntryStyle(
        escape=escape_latex,
        bold=lambda text: rf"\textbf{{{text}}}",
        spread=lambda text: rf" $\pm$ {text}",
        below_control=_mark(BELOW),
        injected=_mark(INJECTED),
        comparison=comparison,
    )


def _mark(mark: str) -> str:
    return rf"\tnote{{{_SYMBOLS.get(mark, mark)}}}"


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
