import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.report.pages.rate_dots import RateDot, draw_rates

RATES = st.floats(0, 1)


def dot(group: str, planted: float, measured: float = 0.5, interval: tuple[float, float] = (0.4, 0.6)) -> RateDot:
    return RateDot(group=group, planted=planted, other=0.25, measured=measured, interval=interval)


def test_groups_are_sorted_and_rates_are_on_one_axis() -> None:
    drawing = draw_rates([dot("a", 0.1), dot("b", 0.9, 0.3), dot("c", 0.9, 0.7), dot("d", 1.0)], width=500)
    assert [row.dot.group for row in drawing.rows] == ["d", "c", "b", "a"]
    places = {tick.text: x for x, tick in drawing.ticks}
    assert drawing.rows[0].planted == places["1"] and drawing.rows[0].other == places["0.25"]
    assert places["0"] == drawing.left and places["1"] < drawing.width
    assert drawing.rows[0].measured == places["0.5"] == pytest.approx((places["0"] + places["1"]) / 2)


@given(st.lists(st.tuples(RATES, RATES), min_size=1, max_size=40))
def test_labels_never_overlap_and_everything_is_inside(pairs: list[tuple[float, float]]) -> None:
    dots = [dot(str(i), planted, measured, (0.0, 1.0)) for i, (planted, measured) in enumerate(pairs)]
    drawing = draw_rates(dots)
    heights = [row.y for row in drawing.rows]
    assert all(later - sooner >= 16 for sooner, later in zip(heights, heights[1:], strict=False))
    assert drawing.top < heights[0] and heights[-1] < drawing.bottom < drawing.height
    planted = [row.dot.planted for row in drawing.rows]
    assert planted == sorted(planted, reverse=True)
    for row in drawing.rows:
        assert drawing.left <= min(row.low, row.measured, row.planted) and max(row.high, row.planted) < drawing.width
    assert draw_rates(dots[::-1]).rows == drawing.rows  # the order of the groups does not matter


def test_rates_out_of_range_and_equal_names_are_refused() -> None:
    for values in ({"planted": 1.2}, {"measured": float("nan")}, {"interval": (-0.1, 0.5)}):
        with pytest.raises(NonFinite, match="'a'"):
            dot("a", **{"planted": 0.5, **values})
    with pytest.raises(ConfigError, match="a, a"):
        draw_rates([dot("a", 0.1), dot("a", 0.2)])
    with pytest.raises(ConfigError, match="none"):
        draw_rates([])
