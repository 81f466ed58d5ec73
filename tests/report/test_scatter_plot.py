import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.report.figure_file import save_figures
from diffprobe.report.scatter_plot import scatter_plot

TITLES = {"x_title": "read", "y_title": "used", "marked_title": "yes", "other_title": "no"}


def test_all_points_are_drawn_and_marked_ones_apart(tmp_path):
    x, y, marked = [0.5, 0.7, 0.9, 0.6], [1e-6, -1e-3, 0.1, 0.0], [False, False, True, False]
    figure = scatter_plot(x, y, marked, heading="$x", **TITLES)
    (axes,) = figure.axes
    lines = {line.get_label(): line for line in axes.lines if line.get_marker() == "o"}
    assert list(lines) == ["no (3)", "yes (1)"]
    assert list(lines["yes (1)"].get_xdata()) == [0.9] and list(lines["yes (1)"].get_ydata()) == [0.1]
    assert list(lines["no (3)"].get_ydata()) == [1e-6, -1e-3, 0.0]
    assert axes.get_yscale() == "symlog" and axes.get_xlabel() == "read"
    (path,) = save_figures([figure], tmp_path / "plot.png")
    assert path.stat().st_size > 1000


def test_points_at_zero_alone_can_be_drawn():
    (axes,) = scatter_plot([0.5], [0.0], [False], **TITLES).axes
    assert axes.get_yscale() == "linear"


def test_other_numbers_of_points_are_refused():
    with pytest.raises(ConfigError, match="2 and 1 values and 1 marks"):
        scatter_plot([0.1, 0.2], [0.1], [True], **TITLES)
    with pytest.raises(ConfigError):
        scatter_plot([], [], [], **TITLES)
