"""Tables for a paper: LaTeX with booktabs, no other package. Owns escaping.

What stands in a table is `report/table_data.py`.
"""

from diffprobe.report.footnotes import Notes, table_notes
from diffprobe.report.table_data import Entry, Table, TableRow

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "±": r"$\pm$", "‡": r"$^{\ddagger}$", "×": r"$\times$", "—": "---", "–": "--", "−": "$-$",
    "|": r"\textbar{}", "[": "{[}", "]": "{]}", "*": "{*}",  # after a line break, a bare [ or * would be its argument
}  # fmt: skip


def render_latex(table: Table) -> str:
    """Render a table as a `table` environment: bold = best of its block, a rule between blocks, notes below."""
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
    for value, rows in table.blocks():
        lines.append(r"\midrule")
        best = table.best(rows)
        for i, row in enumerate(rows):
            lines.append(_line(_cells(table, row, best, notes, repeat=value is None or i == 0)))
    lines += [r"\bottomrule", r"\end{tabular}", "", r"\smallskip", r"\begin{minipage}{\linewidth}\footnotesize"]
    lines += [escape_latex(note) + r"\\" for note in notes.lines[:-1]] + [escape_latex(notes.lines[-1])]
    return "\n".join([*lines, r"\end{minipage}", r"\end{table}"]) + "\n"


def escape_latex(text: str) -> str:
    r"""Write text so that LaTeX prints it.

    >>> escape_latex("50% of up_blocks")
    '50\\% of up\\_blocks'
    """
    return "".join(_SPECIAL.get(char, char) for char in text)


def _cells(table: Table, row: TableRow, best: float | None, notes: Notes, *, repeat: bool) -> list[str]:
    """Write one row; the outermost label stands only in the first row of its block."""
    spec = table.spec
    labels = [escape_latex(axis.label(value)) for axis, value in zip(spec.rows, row.values, strict=True)]
    cells = labels if repeat else ["", *labels[1:]]
    cells += [_entry(table, entry, best, notes) for entry in row.entries]
    return cells + [
        escape_latex(spec.missing) if control is None else spec.number.show(control) for control in row.controls
    ]


def _entry(table: Table, entry: Entry, best: float | None, notes: Notes) -> str:
    number = table.spec.number
    if entry.value is None:
        text = escape_latex(table.spec.missing)
    else:
        text = number.show(entry.value)
        if entry.value == best:
            text = rf"\textbf{{{text}}}"
        if entry.spread is not None:
            text += rf" $\pm$ {number.show(entry.spread)}"
        if table.beats_controls(entry) is False:
            text += r"$^{\ddagger}$"
    comparison = entry.comparison
    if comparison is None:
        return text
    mark = rf"{number.show(comparison.published.value)}$^{{\mathrm{{{notes.marks[comparison.note]}}}}}$"
    if comparison.delta is None:
        return f"{text} ({mark})"
    delta = number.show(comparison.delta, signed=True)
    return f"{text} ({mark}, ${delta}${'' if comparison.within else ' !'})"


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"
