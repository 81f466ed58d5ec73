"""Small inline drawings of the page, as numbers for its templates. Owns their geometry; colours belong to the style."""

from dataclasses import dataclass

from diffprobe.report.pages.panels import Histogram


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A mark on the axis of a drawing."""

    percent: float
    """Place on the axis, 0..100."""
    text: str
    anchor: str
    """"start", "middle" or "end": which part of the text stands at the place."""


@dataclass(frozen=True, kw_only=True)
class HistogramDrawing:
    """Outlines of a two-class histogram in a box of `width` x `height` units."""

    width: int
    height: int
    outlines: dict[str, str]
    """Class name -> SVG path, closed at the base line."""
    totals: dict[str, int]
    """Class name -> samples."""
    ticks: tuple[Tick, ...]


def draw_histogram(histogram: Histogram, *, width: int = 640, height: int = 150) -> HistogramDrawing:
    """Draw each class as the share of its own samples, so that unequal classes can be compared."""
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
    if 0.12 < -low / (high - low) < 0.88:  # elsewhere the 0 would run into an end
        ticks.insert(1, Tick(percent=round(-100 * low / (high - low), 1), text="0", anchor="middle"))
    return HistogramDrawing(width=width, height=height, outlines=outlines, totals=totals, ticks=tuple(ticks))


def bar_share(value: float, full: float) -> float:
    """Return the length of a bar in percent of its track, held inside the track.

    >>> bar_share(1.5, 6.0), bar_share(9.0, 6.0)
    (25.0, 100.0)
    """
    return round(100 * min(max(value / full, 0.0), 1.0), 1) if full > 0 else 0.0
