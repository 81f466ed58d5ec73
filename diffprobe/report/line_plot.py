"""Line plots of tables with matplotlib: one line per row over the columns, with the range of each control."""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffprobe.core.terminal import one_line
from diffprobe.report.figure import control_levels, figure_class, wrapped_heading
from diffprobe.report.filled_table import TableData, TableRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's palette, readable with colour vision deficiency; yellow is too pale for a line."""
_DASHES = ("-", "--", "-.", ":")
_CONTROL_DASHES: tuple[Any, ...] = (
    (0, (1, 1)), (0, (5, 2)), (0, (3, 1, 1, 1)), (0, (8, 3)), (0, (1, 4)), (0, (3, 1, 1, 1, 1, 1)),
)  # fmt: skip
_MARKERS = "os^Dv"
_WIDTH, _HEIGHT = 7.2, 3.9  # inches


def line_plot(table: TableData, rows: Sequence[TableRow] | None = None, *, heading: str = "") -> "Figure":
    """Draw rows of a table as lines over its columns.

    Numbers on the column axis are placed by their value, text in order. Bars are standard deviations over seeds; a
    hollow point does not beat the strongest control of its entry; a line has a gap where a result is missing.

    Args:
        table: the filled table.
        rows: the rows to draw, for example one block; all if None.
        heading: text above the plot.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    rows = list(table.rows if rows is None else rows)
    settings: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(settings):
        figure = figure_class()(figsize=(_WIDTH, _HEIGHT + 0.18 * max(0, len(rows) - 8)))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        places = _places(table)
        styles = itertools.product(_DASHES, _COLOURS)
        for i, (row, (dash, colour)) in enumerate(zip(rows, itertools.cycle(styles), strict=False)):
            _draw_row(axes, table, row, places, colour=colour, dash=dash, marker=_MARKERS[i % len(_MARKERS)])
        _draw_controls(axes, table, rows)
        _label(axes, table, places)
        if heading:
            axes.set_title(wrapped_heading(heading, _WIDTH - 1.5), loc="left", fontsize=11, parse_math=False)
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
        figure.set_layout_engine("constrained")
    return figure


def _places(table: TableData) -> list[float]:
    """Return the position of each column on the horizontal axis."""
    if all(isinstance(value, (int, float)) for value in table.columns):
        return [float(value) for value in table.columns]
    return [float(i) for i in range(len(table.columns))]


def _draw_row(
    axes: "Axes", table: TableData, row: TableRow, places: Sequence[float], *, colour: str, dash: str, marker: str
) -> None:
    scale = table.spec.number.scale
    values = [float("nan") if entry.value is None else entry.value * scale for entry in row.entries]
    spreads = [(entry.spread or 0.0) * scale for entry in row.entries]
    label = one_line(", ".join(table.row_labels(row)))
    # a label that starts with _ is left out of a legend by matplotlib
    axes.plot(places, values, dash, color=colour, lw=1.6, marker=marker, ms=5.5, label=f"\u200b{label}")
    if any(spreads):
        axes.errorbar(places, values, yerr=spreads, fmt="none", ecolor=colour, elinewidth=1, capsize=3)
    below = [
        (place, value)
        for place, value, entry in zip(places, values, row.entries, strict=True)
        if table.beats_controls(entry) is False
    ]
    if below:
        axes.plot(*zip(*below, strict=True), ls="", marker=marker, ms=5.5, mfc="white", mec=colour, zorder=3)


def _draw_controls(axes: "Axes", table: TableData, rows: Sequence[TableRow]) -> None:
    """Draw the range of each control as a band, and its upper end as a line."""
    scale = table.spec.number.scale
    for level, dash in zip(control_levels(table, rows), itertools.cycle(_CONTROL_DASHES), strict=False):
        axes.axhspan(level.low * scale, level.high * scale, color="#808080", alpha=0.12, lw=0)
        axes.axhline(
            level.high * scale, color="#606060", lw=1, ls=dash, zorder=1, label=f"\u200b{one_line(level.title)}"
        )


def _label(axes: "Axes", table: TableData, places: Sequence[float]) -> None:
    spec = table.spec
    unit = f" ({spec.number.unit})" if spec.number.unit else ""
    axes.set_ylabel(one_line(f"{spec.metric.replace('_', ' ')}{unit}"), parse_math=False)
    axes.set_xlabel(one_line(spec.columns.title or spec.columns.field), parse_math=False)
    axes.set_xticks(list(places), [spec.columns.label(value) for value in table.columns], parse_math=False)
    if any(table.beats_controls(entry) is False for row in table.rows for entry in row.entries):
        axes.plot([], [], ls="", marker="o", ms=5.5, mfc="white", mec="#404040", label="not above its controls")
