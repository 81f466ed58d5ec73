"""Geometry of the drawings of an audit's page: ranked dot plots with intervals, and scatter plots of two axes.

Texts and colours are in the template and its style sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffprobe.report.pages.svg import Tick

ROW, TOP = 20, 8
"""Height of a row and space above the first one, units of the drawing."""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One row of a ranked dot plot."""

    label: str
    y: float
    x: float
    """Percent of the width."""
    low: float | None
    high: float | None
    """Ends of the interval, percent of the width; None without interval."""
    reference: float | None
    """Place of the reference of this row, percent of the width; None where one line is for all rows."""
    is_found: bool
    """Whether it is drawn filled."""
    hint: str
    """The numbers as text."""


@dataclass(frozen=True, kw_only=True)
class DotPlot:
    """A ranked dot plot: one row per subject."""

    height: int
    dots: tuple[Dot, ...]
    line: float | None
    """Place of the reference line of all rows, percent of the width."""
    ticks: tuple[Tick, ...]


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a row shows."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    is_found: bool = False
    hint: str = ""


def draw_dots(rows: Sequence[Row], *, line: float | None, limits: tuple[float, float] | None = None) -> DotPlot:
    """Place rows from top to bottom, in their order.

    Args:
        rows: at least one.
        line: value of the reference line; None for none.
        limits: ends of the axis; None for those of the data and the line, with some space.
    """
    numbers = [n for row in rows for n in (row.value, row.low, row.high, row.reference) if n is not None]
    low, high = limits or _limits([*numbers, *([] if line is None else [line])])

    def across(value: float | None) -> float | None:
        return None if value is None else round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    dots = tuple(
        Dot(label=row.label, y=TOP + ROW * (i + 0.5), x=across(row.value) or 0.0, low=across(row.low),
            high=across(row.high), reference=across(row.reference), is_found=row.is_found, hint=row.hint)
        for i, row in enumerate(rows)
    )  # fmt: skip
    return DotPlot(height=TOP * 2 + ROW * len(rows), dots=dots, line=across(line), ticks=_ticks(low, high))


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a scatter plot, percent of width and height from the upper left corner."""

    label: str
    x: float
    y: float
    hint: str


@dataclass(frozen=True, kw_only=True)
class Scatter:
    """A scatter plot of two numbers per subject."""

    points: tuple[Point, ...]
    zero_x: float
    """Place of 0 along x, percent."""
    zero_y: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def draw_scatter(labels: Sequence[str], x: Sequence[float], y: Sequence[float]) -> Scatter:
    """Place points of two axes, both with 0 in view."""
    x_low, x_high = _limits([*x, 0.0])
    y_low, y_high = _limits([*y, 0.0])

    def place(value: float, low: float, high: float) -> float:
        return round(100 * (value - low) / (high - low), 2)

    points = tuple(
        Point(label=label, x=place(a, x_low, x_high), y=round(100 - place(b, y_low, y_high), 2),
              hint=f"{label}: {a:+.3f}, {b:+.3f}")
        for label, a, b in zip(labels, x, y, strict=True)
    )  # fmt: skip
    return Scatter(
        points=points, zero_x=place(0, x_low, x_high), zero_y=round(100 - place(0, y_low, y_high), 2),
        x_ticks=_ticks(x_low, x_high), y_ticks=tuple(
            Tick(percent=round(100 - tick.percent, 2), text=tick.text, anchor="end") for tick in _ticks(y_low, y_high)
        ),
    )  # fmt: skip


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    space = (high - low) * 0.06 or 0.5
    return low - space, high + space


def _ticks(low: float, high: float) -> tuple[Tick, ...]:
    """Return ticks at round numbers."""
    from math import ceil, floor, log10

    raw = (high - low) / 7
    power = 10 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    digits = max(0, -floor(log10(step)))
    numbers = range(ceil(low / step), floor(high / step) + 1)
    return tuple(
        Tick(percent=round(100 * (n * step - low) / (high - low), 2), text=f"{n * step:.{digits}f}", anchor="middle")
        for n in numbers
    )  # fmt: skip
