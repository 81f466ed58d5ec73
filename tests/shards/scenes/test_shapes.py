"""Coverage against areas that are known."""

import math

import numpy as np
import pytest

from diffprobe.shards.scenes.shapes import FULL, Placement, Sprite, draw_sprite
from diffprobe.shards.scenes.spec import Shape

RED = (200, 10, 0)


def draw(kind: str, *numbers: float, outline: float = 0, **placement: object) -> Sprite:
    shape = Shape(kind=kind, numbers=numbers, fill=RED)
    place = Placement(**placement)  # type: ignore[arg-type]
    return draw_sprite([(shape, place)], {"p": ((1.0, 2.0), place)}, outline=outline, outline_colour=(0, 0, 0))


@pytest.mark.parametrize(
    ("sprite", "area"),
    [
        (draw("polygon", -3, -4, 5, -4, 5, 6, -3, 6), 80),
        (draw("polygon", 0, 0, 8, 0, 0, 6), 24),
        (draw("ellipse", 0.5, 0, 5, 3), math.pi * 15),
        (draw("line", 0, 0, 6, 8, 4), 40 + math.pi * 4),
        (draw("polygon", -3, -4, 5, -4, 5, 6, -3, 6, scale=0.5), 20),
        (draw("polygon", -3, -4, 5, -4, 5, 6, -3, 6, turn=(4, 3, 5)), 80),
        (draw("ellipse", 4, 1, 5, 3, turn=(4, 3, 5), move=(2.0, 3.0)), math.pi * 15),
        (draw("polygon", -3, -4, 5, -4, 5, 6, -3, 6, outline=1), 80 + 2 * (8 + 10) + math.pi),
    ],
)
def test_coverage_is_the_area(sprite: Sprite, area: float) -> None:
    assert sprite.alpha.sum() / FULL == pytest.approx(area, rel=0.02)
    assert sprite.alpha.max() == FULL and sprite.alpha.min() >= 0
    for edge in (sprite.alpha[0], sprite.alpha[-1], sprite.alpha[:, 0], sprite.alpha[:, -1]):
        assert edge.any()  # no empty border


def test_a_rectangle_on_pixels_is_exact_and_paint_is_its_colour() -> None:
    sprite = draw("polygon", -3, -4, 5, -4, 5, 6, -3, 6)
    assert (sprite.top, sprite.left, sprite.bottom, sprite.right) == (-4, -3, 6, 5)
    assert (sprite.alpha == FULL).all()
    assert (sprite.paint == np.array(RED) * FULL).all() and not sprite.cloth.any()


def test_a_turn_moves_points_and_shapes_alike() -> None:
    sprite = draw("line", 0, 0, 1, 2, 1, turn=(0, 1, 1), move=(10.0, 0.0), scale=2)
    assert sprite.points["p"] == (16.0, 2.0)  # (1, 2) -> (-2, 1) -> (8, 1) -> (16, 2)
    row, column = 2 - sprite.top, 16 - sprite.left
    assert sprite.alpha[row - 1 : row + 1, column - 1 : column + 1].any()


def test_cloth_is_not_painted_and_a_later_shape_hides_an_earlier_one() -> None:
    square = (0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0)
    cloth = Shape(kind="polygon", numbers=square, fill=None)
    patch = Shape(kind="polygon", numbers=(0.0, 0.0, 2.0, 0.0, 2.0, 4.0, 0.0, 4.0), fill=RED)
    sprite = draw_sprite([(cloth, Placement()), (patch, Placement())], {}, outline=0, outline_colour=(0, 0, 0))
    assert (sprite.cloth[:, 2:] == FULL).all() and not sprite.cloth[:, :2].any()
    assert (sprite.paint[:, :2] == np.array(RED) * FULL).all() and not sprite.paint[:, 2:].any()
