"""Geometry of the inline drawings."""

import re

from diffprobe.report.pages.panels import Histogram, make_histogram
from diffprobe.report.pages.svg import bar_share, draw_histogram


def test_each_class_is_scaled_to_its_own_size():
    drawing = draw_histogram(Histogram(edges=(0.0, 1.0, 2.0), counts={"few": (1, 0), "many": (0, 500)}))
    tops = {name: min(float(y) for y in re.findall(r"V([\d.]+)", path)) for name, path in drawing.outlines.items()}
    assert tops == {"few": 8.0, "many": 8.0} and drawing.totals == {"few": 1, "many": 500}


def test_outlines_end_at_the_box():
    drawing = draw_histogram(make_histogram({"a": [-1.0, 0.5, 2.0], "b": [0.0]}, n_bins=7), width=100, height=50)
    for path in drawing.outlines.values():
        assert path.startswith("M0.0 50") and path.endswith("V50Z") and "H100.0" in path


def test_zero_is_marked_where_it_has_room():
    texts = [tick.text for tick in draw_histogram(make_histogram({"a": [-1.0, 3.0]})).ticks]
    assert texts == ["-1", "0", "3"]
    assert [tick.text for tick in draw_histogram(make_histogram({"a": [1.0, 3.0]})).ticks] == ["1", "3"]


def test_bars_stay_in_their_track():
    assert [bar_share(x, 2.0) for x in (-1.0, 0.5, 5.0)] == [0.0, 25.0, 100.0]
    assert bar_share(1.0, 0.0) == 0.0
