"""Heat maps of a table with matplotlib. Owns the drawing; what stands in it is `report/table_data.py`.

matplotlib is imported only when a figure is drawn, and only with its Agg canvas: no display, no global state.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from diffprobe.report.table_data import Table, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOUR_MAP = "cividis"
"""Perceptually uniform, and the same to readers with and without colour vision deficiency."""
_INK = "#010203"  # stands for the page's own text colour and is replaced by it in the SVG


@dataclass(frozen=True, kw_only=True)
class Level:
    """A control level beside the colour scale."""

    title: str
    low: float
    high: float


def heat_map(table: Table, rows: Sequence[TableRow] | None = None, *, format: Literal["svg", "png"] = "svg") -> bytes:
    """Draw rows x columns as a heat map, the control levels marked on its colour scale.

    Args:
        table: the filled table.
        rows: the rows to draw, for example one block; all if None. The outermost of several row axes is not labelled.
        format: "svg" is an inline fragment (its text takes the colour and font of the page); "png" stands alone.
    Returns: UTF-8 SVG or PNG bytes, the same for the same table and matplotlib version.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = list(table.rows if rows is None else rows)
    low, high = _limits(table, rows)
    n_rows, n_columns = len(rows), len(table.columns)
    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": str([row.values for row in rows]),
        "font.size": 11,
        "axes.linewidth": 0,
    }
    with mpl.rc_context(settings):
        margin = _margin(table, rows)
        width, height = margin + 0.15 + 0.95 * n_columns + 2.1, 0.75 + 0.62 * n_rows
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        left, bottom, top = margin / width, 0.5 / height, 1 - 0.12 / height
        grid = figure.add_axes((left, bottom, 0.95 * n_columns / width, top - bottom))
        bar = figure.add_axes((left + (0.95 * n_columns + 0.28) / width, bottom, 0.14 / width, top - bottom))
        scale = mpl.colors.Normalize(low, high)
        _draw_cells(grid, table, rows, mpl.colormaps[COLOUR_MAP], scale)
        _draw_scale(bar, table, rows, mpl.colormaps[COLOUR_MAP], scale, height_in=(top - bottom) * height)
        buffer = io.BytesIO()
        if format == "png":
            figure.savefig(buffer, format="png", dpi=200, facecolor="white", metadata={"Software": None})
            return buffer.getvalue()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue().decode()).encode()


def control_levels(table: Table, rows: Sequence[TableRow]) -> list[Level]:
    """Return the range of each control over the entries of some rows, in the order of the spec, without absent ones."""
    levels = []
    for control in table.spec.controls:
        values = [e.controls[control.name] for row in rows for e in row.entries if control.name in e.controls]
        if values:
            levels.append(Level(title=control.title, low=min(values), high=max(values)))
    return levels


def _limits(table: Table, rows: Sequence[TableRow]) -> tuple[float, float]:
    """Span the colours over measured values and controls, so that a cell near a control has the colour of that control."""
    values = [e.value for row in rows for e in row.entries if e.value is not None]
    values += [end for level in control_levels(table, rows) for end in (level.low, level.high)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _margin(table: Table, rows: Sequence[TableRow]) -> float:
    """Return the inches that the row labels need; a character takes about 0.08 at the size they have."""
    longest = max((len(label) for row in rows for label in table.row_labels(row)), default=0)
    return max(1.15, 0.25 + 0.08 * longest)


def _draw_cells(axes: "Axes", table: Table, rows: Sequence[TableRow], colours: Any, scale: Any) -> None:
    from matplotlib.patches import Rectangle

    spec = table.spec
    for i, row in enumerate(rows):
        for j, entry in enumerate(row.entries):
            box = (j + 0.02, i + 0.03)
            if entry.value is None:
                axes.add_patch(Rectangle(box, 0.96, 0.94, fill=False, edgecolor=_INK, alpha=0.35, hatch="///", lw=0.5))
                axes.text(j + 0.5, i + 0.5, spec.missing, ha="center", va="center", color=_INK, parse_math=False)
                continue
            colour = colours(scale(entry.value))
            axes.add_patch(Rectangle(box, 0.96, 0.94, facecolor=colour, edgecolor="none"))
            text = spec.number.show(entry.value) + (" ‡" if table.beats_controls(entry) is False else "")
            ink = "#ffffff" if _luminance(colour) < 0.18 else "#10141c"  # the better contrast of the two
            axes.text(j + 0.5, i + 0.5, text, ha="center", va="center", color=ink, fontsize=12, parse_math=False)
    axes.set_xlim(0, len(table.columns))
    axes.set_ylim(len(rows), 0)
    axes.set_xticks([j + 0.5 for j in range(len(table.columns))], [""] * len(table.columns))
    axes.set_yticks([i + 0.5 for i in range(len(rows))], [""] * len(rows))
    axes.tick_params(length=0)
    for j, value in enumerate(table.columns):
        label = spec.columns.label(value)
        axes.text(j + 0.5, len(rows) + 0.14, label, ha="center", va="top", color=_INK, parse_math=False)
    for i, row in enumerate(rows):
        label = "\n".join(table.row_labels(row))  # a row is as high as three lines
        axes.text(-0.1, i + 0.5, label, ha="right", va="center", color=_INK, parse_math=False)


def _draw_scale(
    axes: "Axes", table: Table, rows: Sequence[TableRow], colours: Any, scale: Any, height_in: float
) -> None:
    """Draw the colour scale; controls hang on its right side with leaders, moved apart where they would overlap."""
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
    show = table.spec.number.show
    marks = [(level.high, f"{level.title} {show(level.high)}", False) for level in control_levels(table, rows)]
    best = table.best(rows)
    if best is not None:
        marks.append((best, f"best {show(best)}", True))
    marks.sort(key=lambda mark: mark[0])
    gap = 0.2 / height_in * (high - low)  # 0.2 inch a line of text
    places = _spread([mark[0] for mark in marks], gap, low, high)
    for (value, text, bold), place in zip(marks, places, strict=True):
        axes.plot([0, 1.25, 2.1, 2.5], [value, value, place, place], color=_INK, lw=0.8, clip_on=False)
        label = axes.text(2.8, place, text, va="center", color=_INK, fontsize=10, clip_on=False, parse_math=False)
        label.set_fontweight("bold" if bold else "normal")


def _spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending label positions apart to at least `gap`, staying within the scale where they fit."""
    places: list[float] = []
    for value in values:
        places.append(max(value, places[-1] + gap) if places else max(value, low))
    ceiling = high
    for i in range(len(places) - 1, -1, -1):  # push back down what ran over the top
        places[i] = min(places[i], ceiling)
        ceiling = places[i] - gap
    return places


def _luminance(colour: Sequence[float]) -> float:
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour[:3])
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _inline(svg: str) -> str:
    """Make a fragment of matplotlib's document: no prolog, no fixed size, the text colour of the page."""
    body = svg[svg.index("<svg ") :]
    head, rest = body.split(">", 1)
    head = re.sub(r'\s(width|height|version|xmlns:xlink)="[^"]*"', "", head)
    rest = re.sub(r"<metadata>.*?</metadata>", "", rest, flags=re.DOTALL)
    rest = re.sub(
        r' id="(?:figure|axes|patch|text|line2d|matplotlib\.axis|[xy]tick)_\d+"', "", rest
    )  # two figures on a page would share these names
    return f"{head}>{rest}".replace(_INK, "currentColor").rstrip()
