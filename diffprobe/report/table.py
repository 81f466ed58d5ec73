"""Tables as text: Markdown, CSV and LaTeX, and the table of an experiment by its name.

Markdown and LaTeX round and mark values; CSV has one line per entry, unrounded, with all that is known about it. LaTeX
is in `latex.py`, the filling of tables in `table_data.py`.
"""

import csv
import io
import itertools
import re
import textwrap
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

from diffprobe.core.failure import failures_below
from diffprobe.core.result import RunResult
from diffprobe.core.terminal import one_line, printable
from diffprobe.report.aggregation import seed_words
from diffprobe.report.default_table import spec_yaml
from diffprobe.report.entry import ComparisonText, EntryStyle, format_control, format_entry
from diffprobe.report.failed_runs import with_failures
from diffprobe.report.figure_file import Plot, figures_of
from diffprobe.report.filled_table import Entry, TableData, TableRow
from diffprobe.report.footnotes import Notes, table_notes
from diffprobe.report.latex import label_of, render_latex
from diffprobe.report.mark_notes import INJECTED
from diffprobe.report.table_data import fill_table
from diffprobe.report.table_request import RESULTS, TableRequest, resolve_request
from diffprobe.report.table_spec import TableSpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Format = Literal["markdown", "csv", "latex"]
FORMATS: tuple[Format, ...] = ("markdown", "csv", "latex")
_WIDTH = 110


@dataclass(frozen=True)
class Table:
    """The table of an experiment: one or several filled tables that are printed together.

    Attributes:
        parts: the filled tables, in the order of their file.
        choices: what was chosen where nobody wrote a `table.yaml`; empty with one.
        folder: folder of the results.
    """

    parts: tuple[TableData, ...]
    choices: tuple[str, ...] = ()
    folder: str = RESULTS

    def __repr__(self) -> str:
        """Name the tables and the number of their entries; `to_markdown` prints them."""
        return f"Table({'; '.join(f'{part.spec.title}: {len(part.entries())} entries' for part in self.parts)})"

    def entries(self) -> list[Entry]:
        """Return all entries, table by table and row by row: place, value, spread, controls, published number."""
        return [entry for part in self.parts for entry in part.entries()]

    def render(self, format: Format) -> str:
        """Return the table in one format, ending in one newline."""
        if format == "markdown":
            return self.to_markdown()
        if format == "csv":
            return self.to_csv()
        if format == "latex":
            return self.to_latex()
        assert_never(format)

    def to_markdown(self) -> str:
        """Return Markdown that is also readable as plain text: columns aligned, text wrapped, best entries in bold."""
        return "\n".join(map(render_markdown, self.parts))

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_csv(self) -> str:
        """Return one line per entry, unrounded; several tables with equal columns have one header line."""
        texts = [render_csv(part) for part in self.parts]
        heads, bodies = zip(*(text.split("\n", 1) for text in texts), strict=True)
        return f"{heads[0]}\n{''.join(bodies)}" if len(set(heads)) == 1 else "\n".join(texts)

    def figures(self, plot: Plot = "heat-map") -> "list[Figure]":
        """Return a matplotlib figure for each block of rows, with the controls: a heat map or a line plot."""
        return figures_of(self.parts, plot)

    def to_yaml(self) -> str:
        """Return the `table.yaml` that makes these tables."""
        return spec_yaml([part.spec for part in self.parts])

    def to_latex(self) -> str:
        """Return a booktabs `table` environment for each table, each with a label of its own."""
        labels: dict[str, None] = {}
        for part in self.parts:
            label = label_of(part.spec.title)
            numbered = (f"{label}-{i}" for i in itertools.count(2))
            labels.setdefault(label if label not in labels else next(one for one in numbered if one not in labels))
        return "\n".join(render_latex(part, label=label) for part, label in zip(self.parts, labels, strict=True))


def build_table(
    name: str | Path | Sequence[str | Path] = (),
    results: Path | str | None = None,
    *,
    where: Mapping[str, Any] | None = None,
    exploratory: bool = False,
    finish: Callable[[TableData, TableRequest], TableData] | None = None,
) -> Table:
    """Build tables from result files: the table of an experiment, or the default one of any runs.

    Args:
        name, results, where, exploratory: see `diffprobe.build_table`, which gives chosen cells their intervals.
        finish: takes each filled table with what was read, and returns it with what only predictions show.
    Raises: SelectionOnTest for many cells on test in a table that is not exploratory; ConfigError for an unknown table
        or field; RunFailed if no result fits, or if an entry would mix results of different settings; SchemaError for
        result files that cannot be read.
    """
    names = [name] if isinstance(name, (str, Path)) else name
    folder = None if results is None else str(results)
    request = resolve_request([str(one) for one in names], results=folder, where=where, exploratory=exploratory)
    parts = tuple(fill_table(request.results, spec) for spec in request.specs)
    if any(entry.value is None for part in parts for entry in part.entries()):
        failures = list(failures_below(request.folder))
        parts = tuple(with_failures(part, failures) for part in parts)
    if finish is not None:
        parts = tuple(finish(part, request) for part in parts)
    return Table(parts, choices=request.choices, folder=request.folder)


def render(results: Sequence[RunResult], spec: TableSpec, format: Format = "markdown") -> str:
    """Render a table from results: a pure function of its arguments.

    Raises: see `fill_table`.
    """
    return Table((fill_table(results, spec),)).render(format)


def render_markdown(table: TableData) -> str:
    """Render a table as Markdown: columns aligned, text wrapped, the best entry of each block in bold."""
    spec, notes = table.spec, table_notes(table)
    style = _style(notes)
    heads = [axis.title or axis.field for axis in spec.rows]
    heads += [spec.columns.label(value) for value in table.columns] + [control.title for control in spec.controls]
    body = [[_escape(head) for head in heads]]
    for _, rows in table.blocks():
        best = table.best(rows)
        body += [_cells(table, row, best, style) for row in rows]
    text = [f"**{_escape(spec.heading)}**", "", *_grid(body, n_left=len(spec.rows)), ""]
    if spec.caption:
        text += [*_wrap(_escape(spec.caption)), ""]
    items = [line for note in notes.lines for line in _wrap(f"- {_escape(note)}", indent="  ")]
    return "\n".join([*text, *items]).rstrip() + "\n"


def _grid(rows: Sequence[Sequence[str]], *, n_left: int) -> list[str]:
    """Align the columns of a Markdown table: the first `n_left` to the left, the others to the right."""
    widths = [max(3, *(_columns(cell) for cell in column)) for column in zip(*rows, strict=True)]

    def pad(cell: str, i: int) -> str:
        space = " " * (widths[i] - _columns(cell))
        return cell + space if i < n_left else space + cell

    rule = [":" + "-" * (w - 1) if i < n_left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    head, *body = [[pad(cell, i) for i, cell in enumerate(row)] for row in rows]
    return [_line(cells) for cells in (head, rule, *body)]


def _columns(text: str) -> int:
    """Return the width of a text in terminal columns."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _wrap(text: str, indent: str = "") -> list[str]:
    """Wrap a paragraph, unless a line would start with Markdown markup (a list item, a heading, a quotation)."""
    lines = textwrap.wrap(text, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    marked = any(re.match(r"\s*([-+=#>]|\d+[.)]\s)", line) for line in lines[1:])
    return [text] if marked else lines


def _cells(table: TableData, row: TableRow, best: float | None, style: EntryStyle) -> list[str]:
    cells = [_escape(axis.label(value)) for axis, value in zip(table.spec.rows, row.values, strict=True)]
    cells += [format_entry(table, entry, best=best, style=style) for entry in row.entries]
    return cells + [_escape(format_control(table, control)) for control in row.controls]


def _style(notes: Notes) -> EntryStyle:
    def comparison(found: ComparisonText) -> str:
        mark = f"{found.published} [{notes.marks[found.note]}]"
        if found.delta is None:
            return f" ({mark})"
        return f" ({mark}, {found.delta}{'' if found.is_within else ' !'})"

    return EntryStyle(
        escape=_escape,
        bold=lambda text: f"**{text}**",
        spread=lambda text: f" ± {text}",
        below_control=" ‡",
        injected=f" {INJECTED}",
        comparison=comparison,
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escape(text: str) -> str:
    """Escape column separators, markup, HTML and control characters in a Markdown table."""
    text = printable(" ".join(text.split()))
    text = re.sub(r"&(?=#|\w+;)", "&amp;", text).replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*\[\]|])", r"\\\1", text)
    text = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", text)  # an underscore inside a word is not markup
    return text


def render_csv(table: TableData) -> str:
    """Render one line per entry: place, value, seeds, all controls, published number. Missing values are empty."""
    spec = table.spec
    fields = [axis.field for axis in (*spec.rows, spec.columns)]
    names = sorted(
        {name for entry in table.entries() for name in entry.controls} | {control.name for control in spec.controls}
    )
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    head = [
        *fields,
        "metric",
        "status",
        "value",
        "spread",
        "n_seeds",
        "seeds_vary",
        "n",
        *(f"control_{name}" for name in names),
        *_TESTS,
    ]
    head += ["published", "delta", "tolerance", "within_tolerance", "source", "provenance"]
    head += _CHOICE if spec.select != "none" else []
    head += ["exploratory"] if spec.is_exploratory else []
    is_injected = any(entry.injected for entry in table.entries())
    head += ["label_injection"] if is_injected else []
    writer.writerow([csv_value(name) for name in head])
    for entry in table.entries():
        measured = entry.value is not None
        line: list[object] = [entry.where[name] for name in fields]
        status = "measured" if measured else "missing" if entry.failure is None else "failed"
        line += [spec.metric, status, entry.value, entry.spread]
        line += [entry.n_seeds, _seeds_vary(entry), entry.n] if measured else [None, None, None]
        line += [entry.controls.get(name) for name in names]
        line += _test_cells(table, entry)
        comparison = entry.comparison
        if comparison is None:
            line += [None] * 6
        else:
            number = comparison.published
            line += [number.value, comparison.delta, number.tolerance, comparison.within]
            line += [number.source, number.provenance]
        line += _choice_cells(table, entry) if spec.select != "none" else []
        line += [True] if spec.is_exploratory else []
        line += ["; ".join(entry.injected) or None] if is_injected else []
        writer.writerow([csv_value(value) for value in line])
    return buffer.getvalue()


_TESTS = [
    "below_control", "difference_from", "difference", "difference_low", "difference_high", "p", "smallest_p",
    "p_adjusted", "n_tests", "compared_by_point",
]  # fmt: skip
"""Columns of the comparison with controls: the mark, the paired difference from the strongest control with its
interval, p, and the controls of which only point estimates are compared."""


def _test_cells(table: TableData, entry: Entry) -> list[object]:
    beats = table.beats_controls(entry)
    if beats is None:
        return [None] * len(_TESTS)
    tests = entry.tests
    by_point = " ".join(entry.compared if tests is None else tests.points)
    found = None if tests is None else tests.strongest(higher_is_better=table.spec.higher_is_better)
    null = None if tests is None else tests.null
    difference = [None] * 4 if found is None else [found.control, found.value, found.low, found.high]
    place = [None] * 4 if null is None else [null.p, null.smallest_p, null.p_adjusted, null.n_tests]
    return [not beats, *difference, *place, by_point or None]


_CHOICE = ["chosen", "test_value", "test_low", "test_high", "test_n"]
"""Columns of a table whose cells are chosen on val; values are those of the chosen cells."""


def _choice_cells(table: TableData, entry: Entry) -> list[object]:
    chosen = next((one for one in table.chosen if one.val.where == entry.where), None)
    if chosen is None:
        return [False, None, None, None, None]
    ends = [None, None] if chosen.interval is None else [chosen.interval.low, chosen.interval.high]
    value, n = (None, None) if chosen.test is None else (chosen.test.value, chosen.test.n)
    return [True, value, *ends, n]


def _seeds_vary(entry: Entry) -> str | None:
    """Return what the seeds of an entry vary, or why it has no spread."""
    if entry.n_seeds > 1 and entry.spread is None:
        return "nothing: all seeds give one value"
    return seed_words(entry.varied) or None


_FORMULA = re.compile(r"[\s\"'`‘’‚“”„\u00b4\uff02\uff07]*[=+\-@\uff1d\uff0b\uff0d\uff20\u2212\ufe62\ufe63\ufe66\ufe6b]")
"""Begin of a cell that a spreadsheet reads as a formula: also behind spaces and quotes, and in full width."""
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


def csv_value(value: object) -> object:
    """Format floats with 12 significant digits, and text so that no spreadsheet reads it as a formula.

    An apostrophe makes it text; numbers stay numbers. Control characters are shown as text.
    """
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, str):
        formula = value[:1] in ("\t", "\r", "\n") or _FORMULA.match(value)
        text = one_line(value)
        return f"'{text}" if formula and not _NUMBER.fullmatch(value) else text
    return value
