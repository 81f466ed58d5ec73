"""Dot plots of estimated against known values, with intervals, by matplotlib."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffprobe.core.errors import ConfigError
from diffprobe.report.figure import figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SIDE = 4.6  # inches
_COLOUR, _OTHER = "#0072b2", "#999999"  # Okabe and Ito's blue; grey


def dot_plot(
    known: Sequence[float],
    estimated: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    *,
    labels: Sequence[str],
    x_title: str,
    y_title: str,
    heading: str = "",
) -> "Figure":
    """Draw estimates in 0..1 against known values in 0..1, with intervals, names, and the diagonal.

    Points of equal known value are drawn beside one another, and their names in a column right of them.

    Args:
        known, estimated: one value per point.
        intervals: (low, high) of each estimate.
        labels: name of each point.
        x_title, y_title: of the axes.
        heading: above the plot.
    Raises: ConfigError for sequences of different lengths, or no points.
    """
    if not len(known) == len(estimated) == len(intervals) == len(labels) or not known:
        raise ConfigError(
            f"dot_plot: {len(known)} known and {len(estimated)} estimated values, {len(intervals)} intervals and "
            f"{len(labels)} labels; as many of each are needed, at least 1."
        )
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    settings: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(settings):
        figure = figure_class()(figsize=(_SIDE * 1.7, _SIDE))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        axes.plot([0, 1], [0, 1], color=_OTHER, linewidth=1, zorder=1)
        places = _beside_one_another(known, estimated)
        for x, y, (low, high) in zip(places, estimated, intervals, strict=True):
            axes.plot([x, x], [low, high], color=_COLOUR, linewidth=1.2, zorder=2)
            axes.plot([x], [y], "o", color=_COLOUR, markersize=4, zorder=3)
        for i, height in enumerate(_label_heights(known, estimated)):
            right = max(x for x, value in zip(places, known, strict=True) if value == known[i]) + 0.012
            axes.plot([places[i], right], [estimated[i], height], color=_OTHER, linewidth=0.5, zorder=1)
            axes.text(right, height, labels[i], fontsize=6, va="center", parse_math=False)
        axes.set(xlim=(-0.04, 1.08), ylim=(-0.04, 1.04), xlabel=x_title, ylabel=y_title)
        if heading:
            axes.set_title(heading, loc="left", fontsize=10, parse_math=False)
        figure.set_layout_engine("constrained")
    return figure


def _beside_one_another(known: Sequence[float], estimated: Sequence[float], gap: float = 0.012) -> list[float]:
    """Return places along x: points of one known value are spread around it, in the order of their estimates."""
    places = [0.0] * len(known)
    for value in set(known):
        rows = sorted((i for i, one in enumerate(known) if one == value), key=lambda i: estimated[i])
        for order, i in enumerate(rows):
            places[i] = value + (order - (len(rows) - 1) / 2) * gap
    return places


def _label_heights(known: Sequence[float], estimated: Sequence[float], gap: float = 0.028) -> list[float]:
    """Return the heights of the names: those of one known value are near their points and at least `gap` apart."""
    heights = [0.0] * len(known)
    for value in set(known):
        rows = sorted((i for i, one in enumerate(known) if one == value), key=lambda i: estimated[i])
        stacked: list[tuple[float, int]] = []  # runs of touching names: their lowest height, and how many they are
        for i in rows:
            low, n = estimated[i], 1
            while stacked and stacked[-1][0] + stacked[-1][1] * gap > low:
                below, m = stacked.pop()
                low, n = (below * m + (low - m * gap) * n) / (m + n), m + n
            stacked.append((low, n))
        found = [low + k * gap for low, n in stacked for k in range(n)]
        for i, height in zip(rows, found, strict=True):
            heights[i] = height
    return heights
