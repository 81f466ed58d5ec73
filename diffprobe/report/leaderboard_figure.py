"""The leaderboard as a picture: factors x dictionaries, one dot each, by matplotlib."""

from typing import TYPE_CHECKING, Any

from diffprobe.report.figure import figure_class
from diffprobe.report.leaderboard_table import Leaderboard

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CELL, _LEFT, _TOP, _RIGHT = 0.62, 2.3, 0.7, 1.5  # inches
_ROW = 0.34  # inches
_MAP = "cividis"
_LOW, _HIGH = 0.5, 1.0
_EDGE = "#444444"


def leaderboard_figure(board: Leaderboard, heading: str = "") -> "Figure":
    """Draw the AUROC of each factor's latents in each dictionary.

    The dot is filled where the factor has a latent in enough seeds, and a ring where it has none; colour is the AUROC,
    and the number in each row's margin is how many factors have a latent. Controls are below a line.

    Args:
        board: the record.
        heading: above the plot.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    rows = board.ordered()
    factors = [cell.factor for cell in rows[0].factors]
    settings: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}
    with mpl.rc_context({**settings, "axes.spines.bottom": False}):
        size = _LEFT + _CELL * len(factors) + _RIGHT, _TOP + _ROW * len(rows) + 0.5
        figure = figure_class()(figsize=size)
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        colours = mpl.colormaps[_MAP]
        for y, row in enumerate(rows):
            for x, cell in enumerate(row.factors):
                share = (cell.auroc.value - _LOW) / (_HIGH - _LOW)
                colour = colours(min(max(share, 0.0), 1.0))
                fill = colour if cell.has_latent else "white"
                axes.plot([x], [y], "o", markersize=15, markerfacecolor=fill, markeredgecolor=colour, markeredgewidth=2)
                text_colour = "white" if cell.has_latent and share < 0.6 else "black"
                axes.text(x, y, _short(cell.auroc.value), ha="center", va="center", fontsize=6.5, color=text_colour)
            axes.text(
                len(factors) - 0.3, y, f"{row.n_with_latent} of {len(row.factors)}", va="center", fontsize=9,
                fontweight="bold" if row.n_with_latent else "normal",
            )  # fmt: skip
        first_control = next((y for y, row in enumerate(rows) if row.kind == "control"), None)
        if first_control:
            axes.axhline(first_control - 0.5, color=_EDGE, linewidth=0.8)
        axes.set_xlim(-0.6, len(factors) + 0.5)
        axes.set_ylim(len(rows) - 0.5, -0.6)
        axes.set_xticks(range(len(factors)), factors, parse_math=False)
        axes.set_yticks(range(len(rows)), [row.name for row in rows], parse_math=False)
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
        axes.set_xlabel(
            f"AUROC of the latents of each factor; filled: at least {board.rules['least_auroc']:g} and "
            f"q < {board.rules['most_q']:g} in most seeds", fontsize=8,
        )  # fmt: skip
        if heading:
            axes.set_title(heading, loc="left", fontsize=10, pad=12, parse_math=False)
        figure.set_layout_engine("constrained")
    return figure


def _short(value: float) -> str:
    """Return a number from 0 to 1 with two digits.

    >>> _short(0.514), _short(0.996)
    ('.51', '1.0')
    """
    return f"{value:.2f}"[1:] if value < 0.995 else "1.0"
