"""Geometry of the inline drawings of a page, for its templates; colours are in the style sheet."""

from dataclasses import dataclass

from diffprobe.report.pages.panels import Histogram


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on the axis of a drawing."""

    percent: float
    """Position on the axis, 0..100."""
    text: str
    anchor: str
    """"start", "middle" or "end": the part of the text at the position."""


@dataclass(frozen=True, kw_only=True)
class HistogramDrawing:
    """Outlines of a two-class histogram in a box of `width` x `height` units."""

    width: int
    height: int
    outlines: dict[str, str]
    """Class name -> SVG path, closed at the baseline."""
    totals: dict[str, int]
    """Class name -> number of samples."""
    ticks: tuple[Tick, ...]


def draw_histogram(histogram: Histogram, *, width: int = 640, height: int = 150) -> HistogramDrawing:
    """Draw each class as shares of its own samples, so that classes of unequal size can be compared."""
    totals = {name: sum(counts) for name, counts in histogram.counts.items()}
    shares = {name: [c / max(totals[name], 1) for c in counts] for name, counts in histogram.counts.items()}
    top = max(max(values) for values in shares.values()) or 1.0
    low, high = histogram.edges[0], histogram.edges[-1]

    def across(value: float) -> float:
        return round((value - low) / (high - low) * width, 1)

    outlines = {}
    for name, values in shares.items():
        path = [f"M{across(low)} {height}"]
        for i, share in enumerate(values):
            y = round(height - share / top * (height - 8), 1)
            path.append(f"V{y}H{across(histogram.edges[i + 1])}")
        outlines[name] = "".join(path) + f"V{height}Z"
    ticks = [Tick(percent=0, text=f"{low:.3g}", anchor="start"), Tick(percent=100, text=f"{high:.3g}", anchor="end")]
    if 0.12 < -low / (high - low) < 0.88:  # elsewhere the 0 would overlap a label at the end
        ticks.insert(1, Tick(percent=round(-100 * low / (high - low), 1), text="0", anchor="middle"))
    return HistogramDrawing(width=width, height=height, outlines=outlines, totals=totals, ticks=tuple(ticks))


def bar_share(value: float, full: float) -> float:
    """Return the length of a bar in percent of its track, clipped to 0..100.

    >>> bar_share(1.5, 6.0), bar_share(9.0, 6.0)
    (25.0, 100.0)
    """
    return round(100 * min(max(value / full, 0.0), 1.0), 1) if full > 0 else 0.0
