"""The picture of the leaderboard has a dot per factor and dictionary."""

from pathlib import Path

from diffprobe.report.figure_file import save_figures
from diffprobe.report.leaderboard_figure import leaderboard_figure
from tests.report.test_leaderboard_table import board


def test_dots_are_filled_where_a_factor_has_a_latent(tmp_path: Path) -> None:
    figure = leaderboard_figure(board(), "heading")
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert len(dots) == 6
    filled = [str(dot.get_markerfacecolor()) != "white" for dot in dots]
    assert filled == [cell.has_latent for row in board().ordered() for cell in row.factors]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["=Lens", "TopK", "neurons"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["f0", "f1"]
    (path,) = save_figures([figure], tmp_path / "a.png")
    assert 1000 < path.stat().st_size < 200_000
