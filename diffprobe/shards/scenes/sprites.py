"""The pictures of all parts of a world, drawn once, and the check that no part hides another or leaves the image."""

import itertools
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.shapes import FULL, SUBSAMPLES, Placement, Sprite, draw_sprite
from diffprobe.shards.scenes.spec import CANVAS, PARTS, SIDES, Drawing, Shape, WorldSpec

HALF = FULL // 2
"""Coverage from which a pixel belongs to a part."""
_LEAST_PERIODS = 2
"""Periods of the stripes that the clothes have to show; fewer look like a single edge."""
_OBJECT, _FEET, _BODY, _ARMS, _HEAD, _HAT, _TOOL = range(1, len(PARTS))


@dataclass(frozen=True, kw_only=True, eq=False)
class Sprites:
    """The picture of each part, by the codes of the factors on which it depends.

    The anchor of the figure's parts is the ground between its feet, that of an object the middle of its base.
    """

    feet: dict[int, Sprite]
    """By size."""
    body: dict[tuple[int, int], Sprite]
    """By build and size."""
    arms: dict[tuple[int, int], Sprite]
    """By pose and size."""
    head: dict[int, Sprite]
    """By size."""
    hat: dict[tuple[str, int], Sprite]
    """By name and size."""
    tool: dict[tuple[str, int, int], Sprite]
    """By name, pose and size."""
    object: dict[int, Sprite]
    """By object."""


@lru_cache(maxsize=8)
def sprites_of(spec: WorldSpec) -> Sprites:
    """Draw the parts of a world."""
    figure, layout = spec.figure, spec.layout
    ink = {"outline": layout.outline, "outline_colour": layout.outline_colour}
    sizes = list(enumerate(spec.sizes))

    def draw(drawing: Drawing, placement: Placement) -> Sprite:
        points = {name: (point, placement) for name, point in drawing.points.items()}
        shapes = [(shape, placement) for shape in drawing.shapes]
        return draw_sprite(shapes, points, outline=layout.outline, outline_colour=layout.outline_colour)

    def arms(hand: tuple[float, float], scale: float) -> Sprite:
        x, y = figure.shoulder
        ends = (((x, y), hand), ((-x, y), figure.resting_hand))
        lines = [Shape(kind="line", numbers=(*a, *b, figure.arm_width), fill=figure.skin) for a, b in ends]
        placement = Placement(scale=scale)
        points = {"free_hand": (figure.resting_hand, placement)}
        return draw_sprite([(line, placement) for line in lines], points, **ink)  # type: ignore[arg-type]

    return Sprites(
        feet={code: draw(figure.feet, Placement(scale=scale)) for code, scale in sizes},
        body={
            (build, code): draw(drawing, Placement(scale=scale))
            for build, drawing in enumerate(spec.builds)
            for code, scale in sizes
        },
        arms={
            (number, code): arms(pose.hand, scale) for number, pose in enumerate(spec.poses) for code, scale in sizes
        },
        head={code: draw(figure.head, Placement(scale=scale)) for code, scale in sizes},
        hat={
            (name, code): draw(drawing, Placement(scale=scale, move=figure.hat_at))
            for name, drawing in spec.hats.items()
            for code, scale in sizes
        },
        tool={
            (name, number, code): draw(drawing, Placement(scale=scale, move=pose.hand, turn=pose.turn))
            for name, drawing in spec.tools.items()
            for number, pose in enumerate(spec.poses)
            for code, scale in sizes
        },
        object={number: draw(drawing, Placement()) for number, drawing in enumerate(spec.objects)},
    )


def check_visible(spec: WorldSpec) -> None:
    """Check that in every scene each part is inside the image, and that of each part enough is visible.

    Each combination of parts that can overlap is counted pair by pair, so the area is a lower bound. Named points have
    to be on the visible area of their part.

    The clothes of each build have to be high enough for their stripes.

    Raises: ConfigError, with the parts, the values of the factors and the area.
    """
    sprites = sprites_of(spec)
    _check_inside(spec, sprites)
    for (build, size), sprite in sprites.body.items():
        rows = int(sprite.cloth.any(axis=1).sum())
        if rows * SUBSAMPLES < _LEAST_PERIODS * spec.stripe_period:
            raise ConfigError(
                f"build '{spec.values['build'][build]}', size '{spec.values['size'][size]}', has {rows} rows of cloth: "
                f"less than {_LEAST_PERIODS} periods of the stripes ({spec.stripe_period / SUBSAMPLES:g} pixels)."
            )
    layout = spec.layout
    down = range(layout.object_y[0] - layout.figure_y[1], layout.object_y[1] - layout.figure_y[0] + 1)
    objects = [
        (_OBJECT, f"{spec.values['object'][code]} on the {side}", _beside(spec, sprite, side, aside=aside, down=rows))
        for code, sprite in sprites.object.items()
        for side in SIDES
        for aside in range(layout.object_x[0], layout.object_x[1] + 1)
        for rows in down
    ]
    for size, pose in itertools.product(range(len(spec.sizes)), range(len(spec.poses))):
        layers: list[list[tuple[int, str, Sprite]]] = [
            objects,
            [(_FEET, "feet", sprites.feet[size])],
            [(_BODY, spec.values["build"][build], sprites.body[build, size]) for build in range(len(spec.builds))],
            [(_ARMS, spec.values["pose"][pose], sprites.arms[pose, size])],
            [(_HEAD, "head", sprites.head[size])],
            [(_HAT, name, sprites.hat[name, size]) for name in spec.hats],
            [(_TOOL, name, sprites.tool[name, pose, size]) for name in spec.tools],
        ]  # fmt: skip
        scene = f"size {spec.values['size'][size]}, pose {spec.values['pose'][pose]}"
        for below, choices in enumerate(layers):
            for part, name, sprite in choices:
                _check_part(spec, (part, name, sprite), layers[below + 1 :], scene)


def _check_part(
    spec: WorldSpec, entry: tuple[int, str, Sprite], above: list[list[tuple[int, str, Sprite]]], scene: str
) -> None:
    part, name, sprite = entry
    own = _mask(sprite)
    visible, hiding = int(own.sum()), []
    for choices in above:
        hidden = [(int((own & _mask(other)).sum()), other_name) for _, other_name, other in choices]
        most, worst = max(hidden)
        visible -= most
        hiding += [f"{worst}: {most}"] if most else []
    least = spec.least_visible[PARTS[part]]
    if visible < least:
        raise ConfigError(
            f"part '{PARTS[part]}' ({name}) has {visible} visible pixels ({scene}), fewer than {least}.",
            f"hidden by {', '.join(hiding)}" if hiding else f"its whole area is {int(own.sum())}",
            fix="move or enlarge it in the file of the world, or lower least_visible",
        )
    for point, (x, y) in sprite.points.items():
        row, column = int(y // 1) + _MIDDLE, int(x // 1) + _MIDDLE
        covers = [name for choices in above for _, name, other in choices if _mask(other)[row, column]]
        if covers or not own[row, column]:
            raise ConfigError(f"point '{point}' of part '{PARTS[part]}' ({name}) is not on its visible area ({scene}).",
                              *([f"hidden by {covers[0]}"] if covers else []))  # fmt: skip


def _check_inside(spec: WorldSpec, sprites: Sprites) -> None:
    """Check that no part leaves the image at any place."""
    layout = spec.layout
    middle = CANVAS // 2
    figure_x = (middle + min(spec.places) + layout.figure_x[0], middle + max(spec.places) + layout.figure_x[1])
    figure_y = (layout.ground + layout.figure_y[0], layout.ground + layout.figure_y[1])
    beside_y = (layout.ground + layout.object_y[0], layout.ground + layout.object_y[1])
    figure = [
        *((f"feet, {spec.values['size'][size]}", sprite) for size, sprite in sprites.feet.items()),
        *((spec.values["build"][build], sprite) for (build, _), sprite in sprites.body.items()),
        *((f"arms, {spec.values['pose'][pose]}", sprite) for (pose, _), sprite in sprites.arms.items()),
        *((f"head, {spec.values['size'][size]}", sprite) for size, sprite in sprites.head.items()),
        *((name, sprite) for (name, _), sprite in sprites.hat.items()),
        *((name, sprite) for (name, _, _), sprite in sprites.tool.items()),
    ]
    objects = [
        (spec.values["object"][code], _beside(spec, sprite, side, aside=aside))
        for code, sprite in sprites.object.items()
        for side in SIDES
        for aside in layout.object_x
    ]
    for entries, rows in ((figure, figure_y), (objects, beside_y)):
        for name, sprite in entries:
            if (
                figure_x[0] + sprite.left < 0 or figure_x[1] + sprite.right > CANVAS
                or rows[0] + sprite.top < 0 or rows[1] + sprite.bottom > CANVAS
            ):  # fmt: skip
                raise ConfigError(
                    f"'{name}' leaves the image: columns {figure_x[0] + sprite.left} to {figure_x[1] + sprite.right}, "
                    f"rows {rows[0] + sprite.top} to {rows[1] + sprite.bottom}, of {CANVAS}.",
                    fix="move it, or use smaller offsets in layout and place",
                )


_MIDDLE = CANVAS
"""Place of the anchor in the masks of the checks: a part inside the image is less than an image away from it."""


def _beside(spec: WorldSpec, sprite: Sprite, side: str, *, aside: int = 0, down: int = 0) -> Sprite:
    """Return an object's picture relative to the anchor of the figure."""
    shift = (-1 if side == "left" else 1) * spec.layout.object_distance + aside
    return replace(
        sprite,
        top=sprite.top + down,
        left=sprite.left + shift,
        points={name: (x + shift, y + down) for name, (x, y) in sprite.points.items()},
    )


@lru_cache(maxsize=1024)
def _mask(sprite: Sprite) -> NDArray[np.bool_]:
    """Return the pixels of a part around its anchor at (`_MIDDLE`, `_MIDDLE`)."""
    mask = np.zeros((2 * _MIDDLE, 2 * _MIDDLE), dtype=np.bool_)
    top, left = _MIDDLE + sprite.top, _MIDDLE + sprite.left
    mask[top : _MIDDLE + sprite.bottom, left : _MIDDLE + sprite.right] = sprite.alpha >= HALF
    return mask
