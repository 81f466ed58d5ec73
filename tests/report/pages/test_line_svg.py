"""Geometry of line charts."""

from diffprobe.report.pages.line_svg import draw_lines


def test_lines_span_the_box() -> None:
    chart = draw_lines("loss", {0: ((0, 10), (1.0, 3.0)), 2: ((5, 10), (2.0, 2.0))}, width=100, height=50)
    assert chart.lines == ((0, "0.0,50.0 100.0,0.0"), (2, "50.0,25.0 100.0,25.0"))
    assert [tick.text for tick in chart.x_ticks] == ["0", "10"] and [tick.text for tick in chart.y_ticks] == ["3", "1"]


def test_one_value_is_a_short_line_within_the_box() -> None:
    chart = draw_lines("fvu", {0: ((7,), (0.5,))}, width=100, height=50)
    ((_, points),) = chart.lines
    assert points == "0.0,50.0 6.0,50.0"
