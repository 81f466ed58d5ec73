"""Turn shapes into small pictures with coverage, by integer tests at 8 x 8 places of each pixel.

Coordinates are integers in 1/256 of a pixel, so that whether a place is inside a shape never depends on the rounding of
a machine: floats are only multiplied and rounded, as IEEE 754 fixes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.shards.scenes.spec import Colour, Shape

SUBSAMPLES = 8
"""Places per pixel and axis."""
FULL = SUBSAMPLES**2
"""Coverage of a pixel that lies wholly inside."""
UNIT = 256
"""Coordinates per pixel."""
_STEP = UNIT // SUBSAMPLES

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sprite:
    """The picture of a part, placed relative to an anchor at the corner of a pixel.

    Attributes:
        top, left: row and column of its first pixel, relative to the anchor.
        alpha: places of each pixel that it covers, int32 (h, w), 0 to `FULL`.
        paint: sum of the colours at these places, without the cloth, int32 (h, w, 3), 0 to 255 * `FULL`.
        cloth: places that are cloth, int32 (h, w), 0 to `FULL`.
        points: name -> (x, y) in pixels relative to the anchor.
    """

    top: int
    left: int
    alpha: Ints
    paint: Ints
    cloth: Ints
    points: dict[str, Point]

    @property
    def bottom(self) -> int:
        """The row after its last one, relative to the anchor."""
        return self.top + self.alpha.shape[0]

    @property
    def right(self) -> int:
        """The column after its last one, relative to the anchor."""
        return self.left + self.alpha.shape[1]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """How coordinates of a drawing become pixels: turn about its origin, move, then scale by the size.

    Attributes:
        scale: size of the figure; 1 for parts that do not scale.
        move: added after the turn, in pixels of size 1.
        turn: cosine and sine of the turn, as integers, and what both are divided by.
    """

    scale: float = 1.0
    move: Point = (0.0, 0.0)
    turn: tuple[int, int, int] = (1, 0, 1)

    def place(self, x: float, y: float) -> tuple[int, int]:
        """Return a point in 1/256 of a pixel."""
        cosine, sine, whole = self.turn
        turned_x = (x * cosine - y * sine) / whole + self.move[0]
        turned_y = (x * sine + y * cosine) / whole + self.move[1]
        return round(turned_x * self.scale * UNIT), round(turned_y * self.scale * UNIT)

    def length(self, length: float) -> int:
        """Return a length in 1/256 of a pixel, at least 1."""
        return max(1, round(length * self.scale * UNIT))


def draw_sprite(
    shapes: Sequence[tuple[Shape, Placement]],
    points: dict[str, tuple[Point, Placement]],
    *,
    outline: float,
    outline_colour: Colour,
) -> Sprite:
    """Draw shapes over one another, with an outline around their union.

    Args:
        shapes: the shapes in drawing order, with the placement of each.
        points: name -> a point and its placement.
        outline: width of the outline in pixels.
    """
    width = round(outline * SUBSAMPLES)
    boxes = [_box(shape, placement) for shape, placement in shapes]
    margin = width * _STEP
    left = (min(box[0] for box in boxes) - margin) // UNIT
    top = (min(box[1] for box in boxes) - margin) // UNIT
    right = -((-max(box[2] for box in boxes) - margin) // UNIT)
    bottom = -((-max(box[3] for box in boxes) - margin) // UNIT)
    x = (np.arange((right - left) * SUBSAMPLES, dtype=np.int64) * _STEP + left * UNIT + _STEP // 2)[None, :]
    y = (np.arange((bottom - top) * SUBSAMPLES, dtype=np.int64) * _STEP + top * UNIT + _STEP // 2)[:, None]
    owner = np.full((y.size, x.size), -1, dtype=np.int16)
    for number, (shape, placement) in enumerate(shapes):
        owner[_inside(shape, placement, x, y)] = number
    covered = owner >= 0
    owner[_grown(covered, width) & ~covered] = len(shapes)
    fills: list[Colour | None] = [*(shape.fill for shape, _ in shapes), outline_colour]
    paint = np.zeros((bottom - top, right - left, 3), dtype=np.int32)
    cloth = np.zeros((bottom - top, right - left), dtype=np.int32)
    for number, fill in enumerate(fills):
        count = _count(owner == number)
        if fill is None:
            cloth += count
        else:
            paint += count[..., None] * np.array(fill, dtype=np.int32)
    placed = {name: placement.place(*point) for name, (point, placement) in points.items()}
    alpha = _count(owner >= 0)
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    used = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return Sprite(
        top=top + int(rows[0]), left=left + int(columns[0]), alpha=alpha[used], paint=paint[used], cloth=cloth[used],
        points={name: (px / UNIT, py / UNIT) for name, (px, py) in placed.items()},
    )  # fmt: skip


def _box(shape: Shape, placement: Placement) -> tuple[int, int, int, int]:
    """Return the left, top, right and bottom of a shape in 1/256 of a pixel, or a little more."""
    if shape.kind == "ellipse":
        x, y = placement.place(*shape.numbers[:2])
        reach = placement.length(max(shape.numbers[2:]))
        return x - reach, y - reach, x + reach, y + reach
    corners = shape.numbers[:4] if shape.kind == "line" else shape.numbers
    xs, ys = zip(*(placement.place(*corner) for corner in _pairs(corners)), strict=True)
    reach = placement.length(shape.numbers[4] / 2) if shape.kind == "line" else 0
    return min(xs) - reach, min(ys) - reach, max(xs) + reach, max(ys) + reach


def _inside(shape: Shape, placement: Placement, x: NDArray[np.int64], y: NDArray[np.int64]) -> Bools:
    """Return which places are inside a shape, bool (rows, columns)."""
    if shape.kind == "ellipse":
        return _in_ellipse(shape, placement, x, y)
    if shape.kind == "line":
        return _in_line(shape, placement, x, y)
    return _in_polygon([placement.place(*corner) for corner in _pairs(shape.numbers)], x, y)


def _in_ellipse(shape: Shape, placement: Placement, x: NDArray[np.int64], y: NDArray[np.int64]) -> Bools:
    """Test an ellipse whose axes turn with its drawing."""
    cx, cy = placement.place(*shape.numbers[:2])
    a, b = (placement.length(radius) for radius in shape.numbers[2:])
    cosine, sine, whole = placement.turn
    along = ((x - cx) * cosine + (y - cy) * sine) // whole
    across = ((y - cy) * cosine - (x - cx) * sine) // whole
    return (along * b) ** 2 + (across * a) ** 2 <= (a * b) ** 2


def _in_line(shape: Shape, placement: Placement, x: NDArray[np.int64], y: NDArray[np.int64]) -> Bools:
    """Test a line with round ends."""
    (x0, y0), (x1, y1) = (placement.place(*corner) for corner in _pairs(shape.numbers[:4]))
    radius = placement.length(shape.numbers[4] / 2)
    dx, dy = x1 - x0, y1 - y0
    along, across = (x - x0) * dx + (y - y0) * dy, (x - x0) * dy - (y - y0) * dx
    length = dx * dx + dy * dy
    between = (along >= 0) & (along <= length) & (across**2 <= radius**2 * length)
    ends = [(x - px) ** 2 + (y - py) ** 2 <= radius**2 for px, py in ((x0, y0), (x1, y1))]
    return between | ends[0] | ends[1]


def _in_polygon(corners: Sequence[tuple[int, int]], x: NDArray[np.int64], y: NDArray[np.int64]) -> Bools:
    """Test a polygon: a place is inside if a ray to the right crosses an odd number of edges."""
    inside = np.zeros((y.size, x.size), dtype=np.bool_)
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        if y0 == y1:
            continue
        if y0 > y1:
            (x0, y0), (x1, y1) = (x1, y1), (x0, y0)
        inside ^= (y >= y0) & (y < y1) & ((x - x0) * (y1 - y0) < (y - y0) * (x1 - x0))
    return inside


def _grown(covered: Bools, width: int) -> Bools:
    """Return the places at most `width` places away from a covered one."""
    padded = np.pad(covered, width)
    grown = np.zeros_like(covered)
    rows, columns = covered.shape
    for down in range(-width, width + 1):
        for aside in range(-width, width + 1):
            if down**2 + aside**2 <= width**2:
                grown |= padded[width + down : width + down + rows, width + aside : width + aside + columns]
    return grown


def _count(places: Bools) -> Ints:
    """Return how many places of each pixel are true, int32 (h, w)."""
    rows, columns = places.shape
    blocks = places.reshape(rows // SUBSAMPLES, SUBSAMPLES, columns // SUBSAMPLES, SUBSAMPLES)
    return blocks.sum(axis=(1, 3), dtype=np.int32)


def _pairs(numbers: Sequence[float]) -> list[Point]:
    return [(numbers[i], numbers[i + 1]) for i in range(0, len(numbers), 2)]
