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
    lines = [tuple(line.get_ydata()) for line in axes.lines if line.get_marker() != "o"]
    assert lines[:4] == [(0, 1), *intervals]  # the diagonal first
    assert axes.get_xlabel() == "planted"
    (path,) = save_figures([figure], tmp_path / "plot.png")
    assert path.stat().st_size > 1000


def test_names_of_one_known_value_do_not_overlap():
    estimated = [0.5, 0.51, 0.5, 0.52, 0.9, 0.905]
    known, names = [0.5] * 5 + [0.98], ["a", "b", "$c", "d", "e", "f"]
    (axes,) = dot_plot(known, estimated, [(0, 1)] * 6, labels=names, **TITLES).axes
    assert [text.get_text() for text in axes.texts] == names
    heights = [text.get_position()[1] for text in axes.texts]
    ordered = sorted(heights[:5])
    assert min(b - a for a, b in zip(ordered, ordered[1:], strict=False)) > 0.027
    assert heights[4:] == estimated[4:]  # names with room stay at their points
    assert heights[0] < heights[1] < heights[3] and sum(heights[:4]) / 4 == pytest.approx(sum(estimated[:4]) / 4)


def test_other_numbers_of_points_are_refused():
    with pytest.raises(ConfigError, match="2 known and 1 estimated"):
        dot_plot([0.1, 0.2], [0.1], [(0, 1)], labels=["a"], **TITLES)
    with pytest.raises(ConfigError):
        dot_plot([], [], [], labels=[], **TITLES)
