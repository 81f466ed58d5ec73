"""Geometry of the dose-response plots of an audit's page: one line per steered direction over strengths."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffprobe.report.pages.svg import Tick


@dataclass(frozen=True, kw_only=True)
class DosePoint:
    """One strength of a steered direction."""

    strength: float
    value: float
    low: float | None = None
    high: float | None = None
    hint: str = ""
    """The numbers as text."""


@dataclass(frozen=True, kw_only=True)
class PlacedPoint:
    """A point in units of the drawing, from the upper left corner."""

    x: float
    y: float
    low: float | None
    """Place of the lower end of the interval; None without interval."""
    high: float | None
    hint: str


@dataclass(frozen=True, kw_only=True)
class DoseCurve:
    """One steered direction."""

    name: str
    is_own: bool
    line: str
    """Its points as "x,y x,y ..."."""
    points: tuple[PlacedPoint, ...]


@dataclass(frozen=True, kw_only=True)
class DosePlot:
    """A dose-response plot in a box of `width` x `height` units."""

    width: int
    height: int
    curves: tuple[DoseCurve, ...]
    """Random directions first, so that the own one is drawn over them."""
    zero: float | None
    """Place of strength 0 along x."""
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    """`percent` counts from the top."""


def draw_doses(
    curves: Sequence[tuple[str, bool, Sequence[DosePoint]]], *, limits: tuple[float, float] | None = None,
    width: int = 520, height: int = 240,
) -> DosePlot:  # fmt: skip
    """Place curves over common axes.

    Args:
        curves: name, whether it is the axis's own direction, and its points; each with at least two strengths.
        limits: ends of the vertical axis; None for those of the data, with some space.
    """
    points = [point for _, _, found in curves for point in found]
    left, right = min(point.strength for point in points), max(point.strength for point in points)
    numbers = [n for point in points for n in (point.value, point.low, point.high) if n is not None]
    space = (max(numbers) - min(numbers)) * 0.06 or 0.5
    bottom, top = limits or (min(numbers) - space, max(numbers) + space)

    def across(strength: float) -> float:
        return round((strength - left) / (right - left) * width, 1)

    def up(value: float | None) -> float | None:
        if value is None:
            return None
        return round((top - min(max(value, bottom), top)) / (top - bottom) * height, 1)

    placed = []
    for name, is_own, found in sorted(curves, key=lambda one: one[1]):
        own = tuple(
            PlacedPoint(x=across(one.strength), y=up(one.value) or 0.0, low=up(one.low), high=up(one.high),
                        hint=f"{name} at {one.strength:+g}: {one.hint}")
            for one in found
        )  # fmt: skip
        line = " ".join(f"{one.x},{one.y}" for one in own)
        placed.append(DoseCurve(name=name, is_own=is_own, line=line, points=own))
    strengths = sorted({point.strength for point in points})
    return DosePlot(
        width=width, height=height, curves=tuple(placed), zero=across(0.0) if left <= 0 <= right else None,
        x_ticks=tuple(
            Tick(percent=round(100 * across(s) / width, 2), text=f"{s:+g}" if s else "0", anchor="middle")
            for s in strengths
        ),
        y_ticks=tuple(
            Tick(percent=round(100 - 25 * i, 2), text=f"{bottom + (top - bottom) * i / 4:.2f}", anchor="end")
            for i in range(5)
        ),
    )  # fmt: skip
