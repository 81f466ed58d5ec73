"""Geometry of line charts for the templates of pages: several series over one axis of steps."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from diffprobe.report.pages.svg import Tick


@dataclass(frozen=True, kw_only=True)
class LineChart:
    """Polylines in a box of `width` x `height` units."""

    title: str
    """What is drawn."""
    width: int
    height: int
    lines: tuple[tuple[int, str], ...]
    """Number of the series -> its points, "x,y x,y ..."."""
    x_ticks: tuple[Tick, ...]
    """First and last step."""
    y_ticks: tuple[Tick, ...]
    """Smallest and largest value; `percent` counts from the top."""


def draw_lines(
    title: str,
    series: Mapping[int, tuple[Sequence[int], Sequence[float]]],
    *,
    width: int = 360,
    height: int = 170,
) -> LineChart:
    """Draw series over a common range.

    Args:
        series: number of the series -> its steps and values, of equal length, not empty.
    """
    steps = [step for xs, _ in series.values() for step in xs]
    values = [value for _, ys in series.values() for value in ys]
    left, right, low, high = min(steps), max(steps), min(values), max(values)
    across = (right - left) or 1
    up = (high - low) or 1.0

    def point(step: int, value: float) -> str:
        return f"{(step - left) / across * width:.1f},{(1 - (value - low) / up) * height:.1f}"

    lines = []
    for number, (xs, ys) in series.items():
        points = [point(x, y) for x, y in zip(xs, ys, strict=True)]
        if len(points) == 1:  # a value at the end of training alone: a short level line
            x, y = (float(part) for part in points[0].split(","))
            points = [f"{max(x - 6, 0):.1f},{y}", f"{min(x + 6, width):.1f},{y}"]
        lines.append((number, " ".join(points)))
    return LineChart(
        title=title,
        width=width,
        height=height,
        lines=tuple(lines),
        x_ticks=(
            Tick(percent=0.0, text=f"{left:,}", anchor="start"),
            Tick(percent=100.0, text=f"{right:,}", anchor="end"),
        ),
        y_ticks=(
            Tick(percent=0.0, text=_short(high), anchor="end"),
            Tick(percent=100.0, text=_short(low), anchor="end"),
        ),
    )


def _short(value: float) -> str:
    """Format a value for an axis.

    >>> _short(0.12345), _short(123456.0), _short(0.0)
    ('0.123', '1.23e+05', '0')
    """
    return f"{value:.3g}" if math.isfinite(value) else "?"
