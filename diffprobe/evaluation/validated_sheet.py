"""A contact sheet of the images of `eval rates` that are labelled, so that a person can label them by eye."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from diffprobe.evaluation.rate_images import RoleImages

if TYPE_CHECKING:
    from PIL.Image import Image

_SIDE, _GAP, _MARGIN = 128, 4, 76  # pixels


def validated_sheet(images: Sequence[RoleImages], n: int) -> "Image":
    """Return the first `n` images of each role, enlarged: a row per role, which is named, in the order of the keys."""
    from PIL import Image, ImageDraw
    from PIL.Image import Resampling

    size = (_MARGIN + n * (_SIDE + _GAP), _GAP + len(images) * (_SIDE + _GAP))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for row, one in enumerate(images):
        top = _GAP + row * (_SIDE + _GAP)
        pen.text((_GAP, top + _SIDE / 2), one.role, fill="black", anchor="lm")
        for column, pixels in enumerate(one.images[:n]):
            image = Image.fromarray(pixels).resize((_SIDE, _SIDE), Resampling.BICUBIC)
            sheet.paste(image, (_MARGIN + column * (_SIDE + _GAP), top))
    return sheet
