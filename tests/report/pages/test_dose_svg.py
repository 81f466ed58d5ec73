"""Geometry of dose-response plots."""

import pytest

from diffprobe.report.pages.dose_svg import DosePoint, draw_doses

OWN = [DosePoint(strength=s, value=v, low=v - 0.1, high=v + 0.1, hint="h") for s, v in ((-2, 0.2), (0, 0.5), (4, 0.9))]
RANDOM = [DosePoint(strength=s, value=0.5) for s in (-2, 0, 4)]


def test_points_are_placed_by_strength_and_value() -> None:
    plot = draw_doses([("gender", True, OWN), ("random 1", False, RANDOM)], limits=(0.0, 1.0), width=600, height=100)
    assert [curve.name for curve in plot.curves] == ["random 1", "gender"]  # the own one is drawn last
    own = plot.curves[1]
    assert own.line == "0.0,80.0 200.0,50.0 600.0,10.0" and plot.zero == 200.0
    assert (own.points[0].low, own.points[0].high) == (90.0, 70.0) and own.points[0].hint == "gender at -2: h"
    assert plot.curves[0].points[0].low is None
    assert [tick.text for tick in plot.x_ticks] == ["-2", "0", "+4"] and plot.x_ticks[1].percent == pytest.approx(33.33)
    assert [tick.text for tick in plot.y_ticks] == ["0.00", "0.25", "0.50", "0.75", "1.00"]


def test_without_limits_all_values_are_inside_and_equal_ones_have_space() -> None:
    plot = draw_doses([("gender", True, OWN)], height=100)
    numbers = [n for point in plot.curves[0].points for n in (point.y, point.low, point.high) if n is not None]
    assert 0 < min(numbers) and max(numbers) < 100
    flat = draw_doses([("random 1", False, RANDOM)], height=100)
    assert {point.y for point in flat.curves[0].points} == {50.0}


def test_values_outside_of_the_limits_are_drawn_at_them() -> None:
    plot = draw_doses([("a", True, [DosePoint(strength=s, value=v) for s, v in ((-1, -3.0), (1, 3.0))])],
                      limits=(0.0, 1.0), height=100)  # fmt: skip
    assert [point.y for point in plot.curves[0].points] == [100.0, 0.0]
