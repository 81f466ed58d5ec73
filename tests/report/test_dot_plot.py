import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.report.dot_plot import dot_plot
from diffprobe.report.figure_file import save_figures

TITLES = {"x_title": "planted", "y_title": "generated"}


def test_points_and_intervals_are_drawn_and_saved(tmp_path):
    known, estimated, intervals = [0.5, 0.5, 0.9], [0.4, 0.6, 0.8], [(0.3, 0.5), (0.5, 0.7), (0.7, 0.9)]
    figure = dot_plot(known, estimated, intervals, labels=["a", "$b", "c"], **TITLES)
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [line.get_ydata()[0] for line in dots] == estimated
    first, second = (line.get_xdata()[0] for line in dots[:2])
    assert first < 0.5 < second and second - first < 0.05  # equal known values stand side by side
    bars = [tuple(line.get_ydata()) for line in axes.lines if line.get_marker() != "o"]
    assert bars == [(0, 1), *intervals]  # the diagonal first
    assert axes.get_xlabel() == "planted"
    (path,) = save_figures([figure], tmp_path / "plot.png")
    assert path.stat().st_size > 1000


def test_other_numbers_of_points_are_refused():
    with pytest.raises(ConfigError, match="2 known and 1 estimated"):
        dot_plot([0.1, 0.2], [0.1], [(0, 1)], labels=["a"], **TITLES)
    with pytest.raises(ConfigError):
        dot_plot([], [], [], labels=[], **TITLES)
