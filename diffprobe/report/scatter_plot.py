"""Scatter plots of two numbers per point, with marked points and a logarithmic axis around 0, by matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffprobe.core.errors import ConfigError
from diffprobe.report.figure import figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 4.6  # inches
_COLOUR, _OTHER = "#0072b2", "#999999"  # Okabe and Ito's blue; grey


def scatter_plot(
    x: Sequence[float],
    y: Sequence[float],
    marked: Sequence[bool],
    *,
    x_title: str,
    y_title: str,
    marked_title: str,
    other_title: str,
    heading: str = "",
) -> "Figure":
    """Draw points over a vertical axis that is linear around 0 and logarithmic beyond, so that all sizes are seen.

    Args:
        x, y: one value per point.
        marked: points that are drawn filled and coloured, over the others.
        x_title, y_title: of the axes.
        marked_title, other_title: of the legend; their numbers of points are added.
        heading: above the plot.
    Raises: ConfigError for sequences of different lengths, or no points.
    """
    if not len(x) == len(y) == len(marked) or not x:
        raise ConfigError(
            f"scatter_plot: {len(x)} and {len(y)} values and {len(marked)} marks; as many of each are needed, at least "
            "1."
        )
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    settings: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(settings):
        figure = figure_class()(figsize=(_SIDE * 1.3, _SIDE))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.axhline(0, color=_OTHER, linewidth=0.8, zorder=1)
        for wanted, title, colour, order in ((False, other_title, _OTHER, 2), (True, marked_title, _COLOUR, 3)):
            rows = [i for i, mark in enumerate(marked) if bool(mark) == wanted]
            axes.plot(
                [x[i] for i in rows], [y[i] for i in rows], "o", markersize=4, zorder=order, color=colour,
                markerfacecolor=colour if wanted else "none", label=f"{title} ({len(rows)})", linestyle="none",
            )  # fmt: skip
        sizes = sorted(abs(value) for value in y if value)
        if sizes:
            axes.set_yscale("symlog", linthresh=sizes[len(sizes) // 4])
        axes.set(xlabel=x_title, ylabel=y_title)
        axes.legend(frameon=False, loc="best")
        if heading:
            axes.set_title(heading, loc="left", fontsize=10, parse_math=False)
        figure.set_layout_engine("constrained")
    return figure
