import numpy as np
import pytest

from diffprobe.core.errors import ConfigError
from diffprobe.report.figure_file import save_figures
from diffprobe.report.lifetime_plot import lifetime_plot


def test_latents_are_rows_in_units_of_their_peak_and_sampling_runs_to_the_right(tmp_path):
    figure = lifetime_plot(np.array([[0.0, 2.0, 8.0], [3.0, 0.0, 0.0]]), [0, 100, 700], title="a <b>")
    axes = figure.axes[0]
    assert axes.images[0].get_array().tolist() == [[1, 0.25, 0], [0, 0, 1]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["700", "100", "0"]
    (path,) = save_figures([figure], tmp_path / "map.svg")
    assert "a &lt;b&gt;" in path.read_text()


def test_nothing_to_draw_is_refused():
    with pytest.raises(ConfigError, match="nothing to draw"):
        lifetime_plot(np.zeros((0, 3)), [0, 100, 700])
