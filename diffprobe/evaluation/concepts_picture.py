"""The picture of `diffprobe eval concepts`: images, their true and found classes, and the score of each class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from diffprobe.core.atomic_file import atomic_file

PICTURE_FILE = "concepts.png"
"""File beside the result."""
_SIDE, _GAP, _HEAD = 112, 4, 16
_COLOURS = np.array(
    [[225, 225, 225], [230, 159, 0], [0, 114, 178], [213, 94, 0], [0, 158, 115], [204, 121, 167], [86, 180, 233],
     [240, 228, 66]], np.uint8,
)  # fmt: skip
"""Of classes, in turn (the first ones of Okabe and Ito, behind light grey)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One image with its classes."""

    image: Image.Image
    """As the backbone gets it."""
    truth: Int[Tensor, "height width"]
    """True class of each pixel."""
    scores: Float[Tensor, "classes height width"]
    """Score of each class, in [0, 1]."""
    found: Int[Tensor, "height width"]
    """Class that the words give."""


def draw_examples(examples: Sequence[Example], classes: Sequence[str], path: Path) -> None:
    """Write a picture with a row per image: image, truth, result, then the scores of each class.

    Each score is shown from its smallest (black) to its largest value in the image (white).
    """
    names = ["image", "truth", "by words", *classes]
    step = _SIDE + _GAP
    sheet = Image.new("RGB", (_GAP + step * len(names), _HEAD + step * len(examples)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        left = _GAP + column * step
        if column > 2:
            colour = tuple(int(v) for v in _COLOURS[(column - 3) % len(_COLOURS)])
            draw.rectangle((left, 3, left + 9, 12), fill=colour, outline="black")
            left += 13
        draw.text((left, 2), name, fill="black")
    for row, one in enumerate(examples):
        tiles = [one.image.convert("RGB"), _classes(one.truth), _classes(one.found), *map(_heat, one.scores)]
        for column, tile in enumerate(tiles):
            shown = tile.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
            sheet.paste(shown, (_GAP + column * step, _HEAD + row * step))
    with atomic_file(path) as temporary:
        sheet.save(temporary, format="PNG", optimize=True)


def _classes(of: Int[Tensor, "height width"]) -> Image.Image:
    return Image.fromarray(_COLOURS[of.numpy() % len(_COLOURS)])


def _heat(scores: Float[Tensor, "height width"]) -> Image.Image:
    values: NDArray[np.float32] = scores.numpy()
    span = float(values.max() - values.min()) or 1.0
    return Image.fromarray(np.uint8(255 * (values - values.min()) / span)).convert("RGB")
