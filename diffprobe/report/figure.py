"""Heat maps with matplotlib: of tables as SVG or PNG, and of plain arrays as figures.

matplotlib is imported only when a figure is drawn, and only with its Agg canvas: it needs no display and changes no
global state.
"""

import functools
import io
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from diffprobe.core.errors import ConfigError
from diffprobe.core.terminal import one_line
from diffprobe.report.entry import PLAIN, format_entry
from diffprobe.report.filled_table import TableData, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import ArrayLike

COLOUR_MAP = "cividis"
"""Perceptually uniform, and readable with colour vision deficiency."""
_INK = "#010203"  # replaced by the text colour of the page in an SVG
_CELL_WIDTH, _CELL_HEIGHT = 0.95, 0.62  # inches
_LINE_HEIGHT = 0.2  # inches per line of a heading
_MISSING = "n/a"


@dataclass(frozen=True, kw_only=True)
class Level:
    """The range of a control, marked on the colour scale."""

    title: str
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """A labelled value on the colour scale."""

    value: float
    text: str
    bold: bool = False


@dataclass(frozen=True, kw_only=True)
class _HeatMap:
    """What is drawn: numbers, their texts, the labels of both axes, and the colour scale."""

    values: list[list[float | None]]
    texts: list[list[str]]
    row_labels: list[str]
    column_labels: list[str]
    limits: tuple[float, float]
    marks: list[_Mark]
    title: str = ""
    """Above the colour scale."""
    heading: str = ""
    """Above the map."""

    @property
    def right(self) -> float:
        """Inches for the colour scale and its marks: about 0.07 per character."""
        longest = max((len(mark.text) for mark in self.marks), default=0)
        return max(2.1, 0.62 + 0.073 * longest)

    @property
    def margin(self) -> float:
        """Inches for the row labels: about 0.08 per character."""
        longest = max((len(line) for label in self.row_labels for line in label.split("\n")), default=0)
        return max(1.15, 0.25 + 0.08 * longest)


def heat_map(
    values: "ArrayLike",
    *,
    rows: Sequence[object] | None = None,
    columns: Sequence[object] | None = None,
    label: str = "",
    number: str = ".3g",
) -> "Figure":
    """Draw a two-dimensional array as a heat map, for example layers x timesteps.

    Args:
        values: rows x columns; NaN marks a missing value. An array, nested lists, or a tensor on the CPU.
        rows: label of each row; its index if None.
        columns: label of each column; its index if None.
        label: what the values are; printed above the colour scale.
        number: format specification of the numbers in the cells.
    Returns: a matplotlib figure, which notebooks display and `savefig` writes.
    Raises: ConfigError if the array is not two-dimensional, has no finite value, or does not fit the labels.
    """
    import numpy as np

    array = np.asarray(values, dtype=float)
    if array.ndim != 2:
        raise ConfigError(f"heat_map: the array has {array.ndim} dimensions; expected: 2 (rows x columns).")
    for name, labels, n in (("rows", rows, array.shape[0]), ("columns", columns, array.shape[1])):
        if labels is not None and len(labels) != n:
            raise ConfigError(f"heat_map: {len(labels)} labels in {name}, the array of shape {array.shape} has {n}.")
    finite = array[np.isfinite(array)]
    if finite.size == 0:
        raise ConfigError(f"heat_map: the array of shape {array.shape} has no finite value.")
    cells = [[float(value) if np.isfinite(value) else None for value in row] for row in array]
    low, high = float(finite.min()), float(finite.max())
    marks = [_Mark(value=value, text=format(value, number)) for value in dict.fromkeys((low, high))]
    return _draw(
        _HeatMap(
            values=cells,
            texts=[[_MISSING if value is None else format(value, number) for value in row] for row in cells],
            row_labels=[str(row) for row in (range(array.shape[0]) if rows is None else rows)],
            column_labels=[str(column) for column in (range(array.shape[1]) if columns is None else columns)],
            limits=_widened(low, high),
            marks=marks,
            title=label,
        )
    )


def render_heat_map(
    table: TableData, rows: Sequence[TableRow] | None = None, *, format: Literal["svg", "png"] = "svg"
) -> bytes:
    """Draw rows x columns of a table as a heat map, with the control levels marked on its colour scale.

    Args:
        table: the filled table.
        rows: the rows to draw, for example one block; all if None. The outermost of several row axes is not labelled.
        format: "svg" is an inline fragment with the text colour and font of the page; "png" is a complete file.
    Returns: UTF-8 SVG or PNG bytes, identical for the same table and matplotlib version.
    """
    import matplotlib as mpl

    rows = list(table.rows if rows is None else rows)
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": str([row.values for row in rows])}
    with mpl.rc_context(settings):
        figure = _draw(_of_table(table, rows))
        buffer = io.BytesIO()
        if format == "png":
            figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
            return buffer.getvalue()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue().decode()).encode()


def table_heat_map(table: TableData, rows: Sequence[TableRow] | None = None, *, heading: str = "") -> "Figure":
    """Draw rows x columns of a table as a heat map, as a figure of its own.

    Args:
        table: the filled table.
        rows: the rows to draw, for example one block; all if None. The outermost of several row axes is not labelled.
        heading: text above the map.
    """
    spec = table.spec
    unit = f" ({spec.number.unit})" if spec.number.unit else ""
    found = _of_table(table, list(table.rows if rows is None else rows))
    return _draw(replace(found, heading=heading, title=one_line(f"{spec.metric.replace('_', ' ')}{unit}")))


def control_levels(table: TableData, rows: Sequence[TableRow]) -> list[Level]:
    """Return the range of each control over the entries of some rows, in the order of the spec, without absent ones."""
    levels = []
    for control in table.spec.controls:
        values = [e.controls[control.name] for row in rows for e in row.entries if control.name in e.controls]
        if values:
            levels.append(Level(title=control.title, low=min(values), high=max(values)))
    return levels


def _of_table(table: TableData, rows: Sequence[TableRow]) -> _HeatMap:
    """Collect what is drawn of a table. The colours span measured values and controls."""
    show, levels, best = table.spec.number.show, control_levels(table, rows), table.best(rows)
    values = [e.value for row in rows for e in row.entries if e.value is not None]
    values += [end for level in levels for end in (level.low, level.high)]
    marks = [_Mark(value=level.high, text=one_line(f"{level.title} {show(level.high)}")) for level in levels]
    if best is not None:
        marks.append(_Mark(value=best, text=f"best {show(best)}", bold=True))
    return _HeatMap(
        values=[[entry.value for entry in row.entries] for row in rows],
        texts=[[one_line(format_entry(table, entry, best=None, style=PLAIN)) for entry in row.entries] for row in rows],
        row_labels=["\n".join(table.row_labels(row)) for row in rows],  # a row is as high as three lines
        column_labels=[table.spec.columns.label(value) for value in table.columns],
        limits=_widened(min(values, default=0.0), max(values, default=1.0)),
        marks=marks,
    )


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


@functools.cache
def figure_class() -> "type[Figure]":
    """Return matplotlib's Figure with the method by which notebooks display it; pyplot, which adds it, is not used."""
    from matplotlib.figure import Figure

    class HeatMapFigure(Figure):
        def _repr_png_(self) -> bytes:
            buffer = io.BytesIO()
            self.savefig(buffer, format="png", dpi=100, facecolor="white")
            return buffer.getvalue()

    return HeatMapFigure


def wrapped_heading(text: str, width: float) -> str:
    """Return a heading in lines that fit into some inches."""
    return "\n".join(textwrap.wrap(one_line(text), max(int(width / 0.085), 12)))


def _draw(found: _HeatMap) -> "Figure":
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    n_rows, n_columns = len(found.values), len(found.column_labels)
    settings: Any = {"font.size": 11, "axes.linewidth": 0}
    with mpl.rc_context(settings):
        width = found.margin + 0.15 + _CELL_WIDTH * n_columns + found.right
        heading = wrapped_heading(found.heading, width - 0.2)
        above = (0.4 if found.title else 0.12) + _LINE_HEIGHT * heading.count("\n") + (0.34 if heading else 0)
        height = 0.63 + above + _CELL_HEIGHT * n_rows
        figure = figure_class()(figsize=(width, height))
        FigureCanvasAgg(figure)
        left, bottom, top = found.margin / width, 0.5 / height, 1 - above / height
        grid = figure.add_axes((left, bottom, _CELL_WIDTH * n_columns / width, top - bottom))
        bar = figure.add_axes((left + (_CELL_WIDTH * n_columns + 0.28) / width, bottom, 0.14 / width, top - bottom))
        scale = mpl.colors.Normalize(*found.limits)
        _draw_cells(grid, found, mpl.colormaps[COLOUR_MAP], scale)
        _draw_scale(bar, found, mpl.colormaps[COLOUR_MAP], scale, height_in=(top - bottom) * height)
        if found.title:
            place = 1 + 0.1 / (top - bottom) / height
            bar.text(
                0, place, found.title, transform=bar.transAxes, ha="left", va="bottom", color=_INK, parse_math=False
            )
        if heading:
            figure.text(0.1 / width, 1 - 0.1 / height, heading, ha="left", va="top", color=_INK, parse_math=False)
    return figure


def _draw_cells(axes: "Axes", found: _HeatMap, colours: Any, scale: Any) -> None:
    from matplotlib.patches import Rectangle

    n_rows, n_columns = len(found.values), len(found.column_labels)
    for i, (values, texts) in enumerate(zip(found.values, found.texts, strict=True)):
        for j, (value, text) in enumerate(zip(values, texts, strict=True)):
            box = (j + 0.02, i + 0.03)
            if value is None:
                axes.add_patch(Rectangle(box, 0.96, 0.94, fill=False, edgecolor=_INK, alpha=0.35, hatch="///", lw=0.5))
                axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=_INK, parse_math=False)
                continue
            colour = colours(scale(value))
            axes.add_patch(Rectangle(box, 0.96, 0.94, facecolor=colour, edgecolor="none"))
            ink = "#ffffff" if _luminance(colour) < 0.18 else "#10141c"  # whichever contrasts more
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink, fontsize=12, parse_math=False)
    axes.set_xlim(0, n_columns)
    axes.set_ylim(n_rows, 0)
    axes.set_xticks([j + 0.5 for j in range(n_columns)], [""] * n_columns)
    axes.set_yticks([i + 0.5 for i in range(n_rows)], [""] * n_rows)
    axes.tick_params(length=0)
    for j, label in enumerate(found.column_labels):
        axes.text(j + 0.5, n_rows + 0.14, label, ha="center", va="top", color=_INK, parse_math=False)
    for i, label in enumerate(found.row_labels):
        axes.text(-0.1, i + 0.5, label, ha="right", va="center", color=_INK, parse_math=False)


def _draw_scale(axes: "Axes", found: _HeatMap, colours: Any, scale: Any, height_in: float) -> None:
    """Draw the colour scale; its marks are on the right with leader lines, moved apart where they would overlap."""
    from matplotlib.patches import Rectangle

    n_steps, low, high = 64, scale.vmin, scale.vmax
    step = (high - low) / n_steps
    for i in range(n_steps):  # each step reaches up to the top and is painted over by the next: no seams
        box = Rectangle(
            (0, low + i * step), 1, high - low - i * step, color=colours((i + 0.5) / n_steps), lw=0, aa=False
        )
        axes.add_patch(box)
    axes.set_xlim(0, 1)
    axes.set_ylim(low, high)
    axes.set_xticks([])
    axes.set_yticks([])
    marks = sorted(found.marks, key=lambda mark: mark.value)
    gap = 0.2 / height_in * (high - low)  # 0.2 inch per line of text
    places = _spread([mark.value for mark in marks], gap, low, high)
    for mark, place in zip(marks, places, strict=True):
        axes.plot([0, 1.25, 2.1, 2.5], [mark.value, mark.value, place, place], color=_INK, lw=0.8, clip_on=False)
        text = axes.text(2.8, place, mark.text, va="center", color=_INK, fontsize=10, clip_on=False, parse_math=False)
        text.set_fontweight("bold" if mark.bold else "normal")


def _spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending label positions apart by at least `gap`, within the scale where they fit."""
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + gap) if places else max(value, low))
    ceiling = high
    for i in range(len(places) - 1, -1, -1):  # push back what ran over the top
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _inline(svg: str) -> str:
    """Return matplotlib's document as a fragment: no prolog, no fixed size, the text colour of the page."""
    body = svg[svg.index("<svg ") :]
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns:xlink)="[^"]*"', "", head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|[xy]tick)_\d+"', "", rest
    )  # two figures on a page would share these ids
    return f"{head}>{rest}".replace(_INK, "currentColor").rstrip()
