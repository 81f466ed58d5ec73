"""Figure of `diffprobe score`: accuracy against denoiser passes, for each question of a result."""

from typing import TYPE_CHECKING, Any

from diffprobe.core.errors import ConfigError
from diffprobe.core.result import RunResult
from diffprobe.core.terminal import one_line
from diffprobe.report.figure import figure_class

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLES = (("-", "o"), ("-.", "s"), (":", "^"))
"""Line and marker, changed where the colours are used up."""
_WIDTH, _HEIGHT = 7.2, 3.9  # inches
_CHANCE = "chance"


def accuracy_by_passes(result: RunResult) -> "Figure":
    """Draw the accuracy with the first 1, 2, 4, ... timesteps against the denoiser passes of an image.

    A line per question with its chance as a dashed level; the bar at the last point is the standard deviation over sets
    of noise. Passes are on a logarithmic axis.

    Raises: ConfigError for a result without such curves.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    records = [record for record in result.metrics if record.detail.get("curve")]
    if not records:
        raise ConfigError(f"the result '{result.run}' has no accuracy against denoiser passes.", fix="diffprobe score")
    settings: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(settings):
        figure = figure_class()(figsize=(_WIDTH, _HEIGHT + 0.18 * max(0, len(records) - 8)))
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        levels: set[float] = set()
        for number, record in enumerate(records):
            colour = _COLOURS[number % len(_COLOURS)]
            dash, marker = _STYLES[number // len(_COLOURS) % len(_STYLES)]
            passes = [point["passes"] for point in record.detail["curve"]]
            values = [point["accuracy"] for point in record.detail["curve"]]
            # a label that starts with _ is left out of a legend by matplotlib
            label = f"\u200b{one_line(record.name.replace('_', ' '))}"
            axes.plot(passes, values, dash, color=colour, lw=1.6, marker=marker, ms=4.5, label=label)
            if record.spread:
                axes.errorbar(passes[-1:], values[-1:], yerr=[record.spread], ecolor=colour, fmt="none", capsize=3)
            if (chance := record.controls.get(_CHANCE)) is not None and chance not in levels:
                levels.add(chance)
                axes.axhline(chance, color=colour, lw=1, ls="--", zorder=1)
        if levels:
            axes.plot([], [], color="#606060", lw=1, ls="--", label="chance")
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.set_xlabel("denoiser passes per image")
        axes.set_ylabel("accuracy")
        legend = axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_parse_math(False)
        figure.set_layout_engine("constrained")
    return figure
