"""Tables for papers: LaTeX with booktabs and no other package."""

from diffprobe.core.terminal import one_line
from diffprobe.report.entry import ComparisonText, EntryStyle, format_control, format_entry
from diffprobe.report.footnotes import Notes, table_notes
from diffprobe.report.table_data import TableData, TableRow

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "‡": r"$^{\ddagger}$", "×": r"$\times$", "—": "---", "–": "--", "−": "$-$",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}",  # after a line break, a bare [ or * would be its argument
}  # fmt: skip


def render_latex(table: TableData) -> str:
    """Render a table as a `table` environment: best entries in bold, rules between blocks, notes below."""
    spec, notes = table.spec, table_notes(table)
    n_left, n_controls = len(spec.rows), len(spec.controls)
    layout = "l" * n_left + "r" * len(table.columns) + ("@{\\qquad}" + "r" * n_controls if n_controls else "")
    heads = [axis.title or axis.field for axis in spec.rows]
    heads += [spec.columns.label(value) for value in table.columns] + [control.title for control in spec.controls]
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape_latex(spec.title)}. {escape_latex(' '.join(spec.caption.split()))}}}",
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
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
    lines += [escape_latex(note) + r"\\" for note in notes.lines[:-1]] + [escape_latex(notes.lines[-1])]
    return "\n".join([*lines, r"\end{minipage}", r"\end{table}"]) + "\n"


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
        mark = rf"{found.published}$^{{\mathrm{{{notes.marks[found.note]}}}}}$"
        if found.delta is None:
            return f" ({mark})"
        return f" ({mark}, ${found.delta}${'' if found.is_within else ' !'})"

    return EntryStyle(
        escape=escape_latex,
        bold=lambda text: rf"\textbf{{{text}}}",
        spread=lambda text: rf" $\pm$ {text}",
        below_control=r"$^{\ddagger}$",
        comparison=comparison,
    )


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
