"""Geometry of dot plots of rates by group for pages: one row per group, so that labels never overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.report.pages.svg import Tick

_LABELS, _RIGHT, _TOP, _ROW, _BOTTOM = 84, 14, 8, 20, 26
_TICKS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, kw_only=True)
class RateDot:
    """The rates of one group, each in 0..1."""

    group: str
    """Name of the group."""
    planted: float
    """The known rate."""
    other: float
    """The rate of another model's world, for comparison."""
    measured: float
    """The measured rate."""
    interval: tuple[float, float]
    """Ends of the interval of the measured rate."""

    def __post_init__(self) -> None:
        values = (self.planted, self.other, self.measured, *self.interval)
        if not all(0 <= value <= 1 for value in values):  # also false for NaN
            raise NonFinite(f"the rates of '{self.group}' are not all in 0..1: {', '.join(map(str, values))}.")


@dataclass(frozen=True, kw_only=True)
class DrawnDot:
    """One row, in units of the drawing."""

    dot: RateDot
    y: float
    planted: float
    other: float
    measured: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class RateDrawing:
    """Rows of dots in a box of `width` x `height` units."""

    width: int
    height: int
    left: int
    """Start of the axis; the labels end before it."""
    top: int
    bottom: int
    """Top and bottom of the rows."""
    rows: tuple[DrawnDot, ...]
    """Sorted by planted rate, ties by measured rate; the highest is on top."""
    ticks: tuple[tuple[float, Tick], ...]
    """Place of each tick of the axis of rates."""


def draw_rates(dots: Sequence[RateDot], *, width: int = 460) -> RateDrawing:
    """Place the rates of groups on one axis, sorted.

    Args:
        dots: at least one.
        width: of the drawing; 100 units remain for the labels and margins.

    Raises: ConfigError without groups, or for one that occurs twice.
    """
    names = [dot.group for dot in dots]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"a dot plot needs distinct groups, at least one; given: {', '.join(names) or '(none)'}.")
    axis = width - _LABELS - _RIGHT

    def across(rate: float) -> float:
        return round(_LABELS + rate * axis, 1)

    ordered = sorted(dots, key=lambda dot: (-dot.planted, -dot.measured, dot.group))
    rows = [
        DrawnDot(
            dot=dot,
            y=_TOP + _ROW * (number + 0.5),
            planted=across(dot.planted),
            other=across(dot.other),
            measured=across(dot.measured),
            low=across(dot.interval[0]),
            high=across(dot.interval[1]),
        )
        for number, dot in enumerate(ordered)
    ]
    bottom = _TOP + _ROW * len(rows)
    ticks = [(across(rate), Tick(percent=100 * rate, text=f"{rate:g}", anchor="middle")) for rate in _TICKS]
    return RateDrawing(
        width=width, height=bottom + _BOTTOM, left=_LABELS, top=_TOP, bottom=bottom, rows=tuple(rows),
        ticks=tuple(ticks),
    )  # fmt: skip
