"""Draw scenes: images with part ids, depth and named points, in integers, so that all machines give the same pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.factors import Ints, Scenes, sample
from diffprobe.shards.scenes.shapes import FULL, SUBSAMPLES, Sprite
from diffprobe.shards.scenes.spec import CANVAS, MASKS, PARTS, RESOLUTIONS, STRIPED, WorldSpec
from diffprobe.shards.scenes.sprites import HALF, sprites_of

_PEAK = 256
"""Largest value of a pattern; patterns are from -256 to 256."""
_SHIFT = 6
"""log2(FULL): pixels are kept in units of 1/64 of a level while they are drawn."""
_NEAREST, _PER_ROW = 100, 8
"""Depth level of a part whose ground is row 48, and levels per row below it: a lower ground is nearer."""
_FIRST_ROW = 48
_OBJECT, _FEET, _BODY = 1, 2, 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Rendered:
    """Drawn scenes and what is known about each pixel.

    Attributes:
        scenes: their factors and offsets.
        images: uint8 (n, r, r, 3), for resolution r.
        parts: id of the part at each pixel, uint8 (n, r, r), an index into `spec.PARTS`.
        depth: uint8 (n, r, r); 0 is the background, and what has a larger level is nearer.
        points: name -> (x, y) of each scene in pixels, float64 (n, 2), from the upper left corner of the image; the
            pixel that contains a point belongs to its part.
    """

    scenes: Scenes
    images: NDArray[np.uint8]
    parts: NDArray[np.uint8]
    depth: NDArray[np.uint8]
    points: dict[str, NDArray[np.float64]]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return a mask by name ("figure", "hat", "tool", "object", "background") or part, bool (n, r, r).

        Raises: ConfigError for another name.
        """
        ids = MASKS.get(name) or ((PARTS.index(name),) if name in PARTS else None)
        if ids is None:
            raise ConfigError(f"unknown mask '{name}'.", f"allowed: {', '.join(dict.fromkeys([*MASKS, *PARTS]))}")
        return np.isin(self.parts, ids)


def render_batch(
    spec: WorldSpec, seed: int, indices: Sequence[int] | Ints, *, world: str | None = None, resolution: int = CANVAS
) -> Rendered:
    """Draw the scenes of some indices. Arguments and errors: see `factors.sample` and `render`."""
    return render(spec, sample(spec, seed, indices, world=world), resolution=resolution)


def render(spec: WorldSpec, scenes: Scenes, *, resolution: int = CANVAS) -> Rendered:
    """Draw scenes.

    Args:
        resolution: 64, or 32: the mean of 2 x 2 pixels, and the part that most of the four have, the last drawn one if
            two parts have as many.

    Raises: ConfigError for another resolution.
    """
    if resolution not in RESOLUTIONS:
        raise ConfigError(f"resolution {resolution} is not offered; allowed: {', '.join(map(str, RESOLUTIONS))}.")
    n = len(scenes)
    images = np.empty((n, CANVAS, CANVAS, 3), dtype=np.uint8)
    parts = np.zeros((n, CANVAS, CANVAS), dtype=np.uint8)
    depth = np.zeros((n, CANVAS, CANVAS), dtype=np.uint8)
    names = _point_names(spec)
    points = {name: np.empty((n, 2)) for name in names}
    codes = {name: values.tolist() for name, values in scenes.factors.items()}
    offsets = {name: values.tolist() for name, values in scenes.offsets.items()}
    for row in range(n):
        one = _Scene(spec, {k: v[row] for k, v in codes.items()}, {k: v[row] for k, v in offsets.items()})
        images[row] = one.draw(parts[row])
        depth[row] = one.depth_levels()[parts[row]]
        for name, (x, y) in one.points().items():
            points[name][row] = x, y
    if resolution != CANVAS:
        images, parts, depth = _halve(images, parts, depth)
        points = {name: places / 2 for name, places in points.items()}
    return Rendered(scenes=scenes, images=images, parts=parts, depth=depth, points=points)


def visible_shares(spec: WorldSpec, scenes: Scenes) -> NDArray[np.float64]:
    """Return how much of each pixel each part fills in the image, float64 (n, 8, 64, 64); the parts sum to 1.

    `Rendered.parts` names the last drawn part that covers at least half of a pixel.
    """
    shares = np.zeros((len(scenes), len(PARTS), CANVAS, CANVAS))
    codes = {name: values.tolist() for name, values in scenes.factors.items()}
    offsets = {name: values.tolist() for name, values in scenes.offsets.items()}
    for row in range(len(scenes)):
        one = _Scene(spec, {k: v[row] for k, v in codes.items()}, {k: v[row] for k, v in offsets.items()})
        left = np.ones((CANVAS, CANVAS))
        for part in range(len(PARTS) - 1, 0, -1):
            sprite, place = one.layers[part - 1]
            area = _area(sprite, *place)
            shares[row, part][area] = left[area] * (sprite.alpha / FULL)
            left[area] -= shares[row, part][area]
        shares[row, 0] = left
    return shares


class _Scene:
    """One scene: its pictures in drawing order, each with the row and column of its anchor."""

    def __init__(self, spec: WorldSpec, codes: dict[str, int], offsets: dict[str, int]) -> None:
        self._spec, self._codes, self._offsets = spec, codes, offsets
        sprites, role = sprites_of(spec), spec.roles[codes["role"]]
        layout, size, pose = spec.layout, codes["size"], codes["pose"]
        self._row = layout.ground + offsets["figure_y"]
        self._column = CANVAS // 2 + spec.places[codes["place"]] + offsets["figure_x"]
        aside = layout.object_distance if codes["side"] else -layout.object_distance
        self._object_row = layout.ground + offsets["object_y"]
        figure = (self._row, self._column)
        beside = (self._object_row, self._column + aside + offsets["object_x"])
        self.layers: list[tuple[Sprite, tuple[int, int]]] = [
            (sprites.object[codes["object"]], beside),
            (sprites.feet[size], figure),
            (sprites.body[codes["build"], size], figure),
            (sprites.arms[pose, size], figure),
            (sprites.head[size], figure),
            (sprites.hat[role.hat, size], figure),
            (sprites.tool[role.tool, pose, size], figure),
        ]

    def draw(self, parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the image, uint8 (64, 64, 3), and write the ids of the parts."""
        canvas = self._background()
        for part, (sprite, (row, column)) in enumerate(self.layers, start=1):
            area = _area(sprite, row, column)
            below = canvas[area]
            below *= (FULL - sprite.alpha)[..., None]
            below >>= _SHIFT
            below += sprite.paint
            if part == _BODY:
                below += self._cloth(sprite, row)
            parts[area][sprite.alpha >= HALF] = part
        canvas += FULL // 2
        canvas >>= _SHIFT
        return canvas.clip(0, 255).astype(np.uint8)

    def _background(self) -> NDArray[np.int32]:
        """Return the background in 1/64 of a level, int32 (64, 64, 3)."""
        spec, offsets = self._spec, self._offsets
        background = spec.backgrounds[self._codes["background"]]
        tint = np.array([offsets[f"tint_{channel}"] for channel in ("red", "green", "blue")], dtype=np.int32)
        canvas = np.empty((CANVAS, CANVAS, 3), dtype=np.int32)
        canvas[:] = tint * FULL
        if background.period:
            x, y = offsets["background_x"] % background.period, offsets["background_y"] % background.period
            tile = _tile(background.pattern, background.period)[y : y + CANVAS, x : x + CANVAS]
            canvas += ((tile * (spec.background_levels * FULL)) // _PEAK)[..., None]
        return canvas

    def _cloth(self, sprite: Sprite, row: int) -> NDArray[np.int32]:
        """Return what the cloth adds to the body, in 1/64 of a level, int32 (h, w, 3).

        The light and the dark halves of the stripes have equal weight over the visible cloth, so that the mean colour
        of striped clothes is that of plain ones.
        """
        spec, offsets = self._spec, self._offsets
        jitter = [offsets[f"cloth_{channel}"] for channel in ("red", "green", "blue")]
        colour = np.array(spec.colours[self._codes["colour"]], dtype=np.int32) + np.array(jitter, dtype=np.int32)
        cloth = sprite.cloth[..., None] * colour
        if self._codes["texture"] != STRIPED:
            return cloth
        start = (offsets["stripe_phase"] + sprite.top * SUBSAMPLES) % spec.stripe_period
        waves = _stripes(spec.stripe_period)[start][: sprite.alpha.shape[0]].astype(np.int64)
        weights = (sprite.cloth * self._visible(sprite, row)).sum(axis=1, dtype=np.int64)
        light, dark = int((weights * waves.clip(min=0)).sum()), int((weights * (-waves).clip(min=0)).sum())
        if light and dark:
            waves = np.where(waves > 0, waves * min(light, dark) // light, -(-waves * min(light, dark) // dark))
        change = sprite.cloth * (waves.astype(np.int32) * spec.stripe_levels)[:, None]
        return cloth + ((change + _PEAK // 2) // _PEAK)[..., None]

    def _visible(self, sprite: Sprite, row: int) -> NDArray[np.int32]:
        """Return how much of the body later parts leave visible, int32 (h, w), 0 to 4096."""
        canvas = np.full((CANVAS, CANVAS), FULL * FULL, dtype=np.int32)
        for other, (down, aside) in self.layers[_BODY:]:
            area = _area(other, down, aside)
            canvas[area] = (canvas[area] * (FULL - other.alpha)) >> _SHIFT
        return canvas[_area(sprite, row, self._column)]

    def depth_levels(self) -> NDArray[np.uint8]:
        """Return the depth level of each part, uint8 (8,): by the row on which it stands, then in drawing order."""
        levels = [0, _NEAREST + _PER_ROW * (self._object_row - _FIRST_ROW) + _PER_ROW - 1]
        levels += [_NEAREST + _PER_ROW * (self._row - _FIRST_ROW) + above for above in range(len(PARTS) - _FEET)]
        return np.array(levels, dtype=np.int64).clip(1, 255).astype(np.uint8) * (np.arange(len(PARTS)) > 0)

    def points(self) -> dict[str, tuple[float, float]]:
        """Return the named points in pixels."""
        return {
            name: (x + column, y + row)
            for sprite, (row, column) in self.layers
            for name, (x, y) in sprite.points.items()
        }


def _area(sprite: Sprite, row: int, column: int) -> tuple[slice, slice]:
    return slice(row + sprite.top, row + sprite.bottom), slice(column + sprite.left, column + sprite.right)


def _point_names(spec: WorldSpec) -> list[str]:
    """Return the names of all points, each of which every scene has."""
    sprites = sprites_of(spec)
    parts = (sprites.object, sprites.feet, sprites.arms, sprites.head, sprites.hat, sprites.tool)
    return [name for drawn in parts for name in next(iter(drawn.values())).points]


@lru_cache(maxsize=64)
def _stripes(period: int) -> NDArray[np.int32]:
    """Return the wave of the stripes by phase and row, int32 (period, 64), -256 to 256.

    Args:
        period: in eighths of a pixel. Phases are eighths of a pixel, too.
    """
    places = np.arange(period)[:, None] + np.arange(CANVAS * SUBSAMPLES)[None, :]
    wave = _wave(places % period, period)
    sums = wave.reshape(period, CANVAS, SUBSAMPLES).sum(axis=2)
    return (sums // SUBSAMPLES).astype(np.int32)


def _wave(places: Ints, period: int) -> Ints:
    """Return a wave of flat tops and straight flanks, each a quarter of the period, in -256 to 256."""
    triangle = np.abs(4 * places - 2 * period) - period
    return (2 * _PEAK * triangle // period).clip(-_PEAK, _PEAK)


@lru_cache(maxsize=64)
def _tile(pattern: str, period: int) -> NDArray[np.int32]:
    """Return a pattern that repeats over more than an image, with a mean of about 0, int32, -256 to 256."""
    places = np.arange(CANVAS + period)
    if pattern == "checks":
        half = places // (period // 2)
        return (np.where((half[:, None] + half[None, :]) % 2, _PEAK, -_PEAK)).astype(np.int32)
    if pattern == "slanted":
        return _wave((places[:, None] + places[None, :]) % period, period).astype(np.int32)
    fine = (np.arange(period * SUBSAMPLES) * 2 + 1 - period * SUBSAMPLES) ** 2
    inside = (fine[:, None] + fine[None, :]) * 8 <= (period * SUBSAMPLES * 2) ** 2  # radius: .35 of the period
    share = inside.reshape(period, SUBSAMPLES, period, SUBSAMPLES).sum(axis=(1, 3))
    n_inside = int(share.sum())
    n_all = (period * SUBSAMPLES) ** 2
    low = -_PEAK * n_inside // (n_all - n_inside)
    one = (share * _PEAK + (FULL - share) * low) // FULL
    repeats = -(-(CANVAS + period) // period)
    return np.tile(one, (repeats, repeats))[: CANVAS + period, : CANVAS + period].astype(np.int32)


def _halve(
    images: NDArray[np.uint8], parts: NDArray[np.uint8], depth: NDArray[np.uint8]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images, parts and depth of half the resolution."""
    sums = images[:, ::2, ::2].astype(np.int32)
    for i, j in ((0, 1), (1, 0), (1, 1)):
        sums += images[:, i::2, j::2]
    four = [parts[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    levels = [depth[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    best = np.zeros(four[0].shape, dtype=np.uint8)
    chosen, chosen_levels = np.zeros_like(four[0]), np.zeros_like(levels[0])
    for one, level in zip(four, levels, strict=True):
        votes = np.zeros_like(best)
        for other in four:
            votes += one == other
        score = votes * np.uint8(len(PARTS)) + one
        better = score >= best
        best = np.where(better, score, best)
        chosen, chosen_levels = np.where(better, one, chosen), np.where(better, level, chosen_levels)
    return ((sums + 2) // 4).astype(np.uint8), chosen, chosen_levels
