"""Geometry of the drawings of an audit."""

import pytest

from diffprobe.report.pages.audit_svg import Row, draw_dots, draw_scatter


def test_rows_keep_their_order_and_proportions() -> None:
    rows = [
        Row(label="a", value=1.0, low=0.5, high=1.0),
        Row(label="b", value=0.0),
        Row(label="c", value=0.25, reference=0.5),
    ]
    found = draw_dots(rows, line=0.5, limits=(0.0, 1.0))
    assert [(dot.label, dot.x, dot.low, dot.high) for dot in found.dots] == [
        ("a", 100.0, 50.0, 100.0), ("b", 0.0, None, None), ("c", 25.0, None, None),
    ]  # fmt: skip
    assert found.line == 50.0 and found.dots[2].reference == 50.0
    assert [dot.y for dot in found.dots] == sorted(dot.y for dot in found.dots) and found.dots[-1].y < found.height


def test_all_numbers_are_inside() -> None:
    found = draw_dots([Row(label="a", value=3.0, low=-2.0, high=9.0), Row(label="b", value=3.0)], line=0.0)
    numbers = [x for dot in found.dots for x in (dot.x, dot.low, dot.high) if x is not None] + [found.line]
    assert all(0 < x < 100 for x in numbers if x is not None)
    assert all(0 <= tick.percent <= 100 for tick in found.ticks) and len(found.ticks) >= 3


@pytest.mark.parametrize("value", [0.0, 1e-9, -5.0])
def test_equal_values_have_an_axis(value: float) -> None:
    found = draw_dots([Row(label="a", value=value), Row(label="b", value=value)], line=None)
    assert found.dots[0].x == found.dots[1].x == pytest.approx(50.0) and found.line is None


def test_points_are_placed_by_both_numbers() -> None:
    found = draw_scatter(["a", "b", "c"], [-1.0, 0.0, 1.0], [1.0, 0.0, -1.0])
    a, b, c = found.points
    assert a.x < b.x < c.x and a.y < b.y < c.y  # y points down
    assert b.x == pytest.approx(found.zero_x) and b.y == pytest.approx(found.zero_y)
    assert found.points[0].hint == "a: -1.000, +1.000"
