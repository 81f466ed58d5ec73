"""Pictures of samples for a page: thumbnails, with a frame around the place of an activation."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from diffprobe.core.errors import DiffprobeError
from diffprobe.evaluation.page_features import PageFeatures
from diffprobe.evaluation.probe_runs import reason
from diffprobe.features.batch import FeatureTable
from diffprobe.features.fetch_images import fetch_images
from diffprobe.report.pages.panels import Picture


@dataclass(frozen=True)
class Place:
    """One position of a feature map.

    Attributes:
        row, column: the position, from 0 at the top left.
        height, width: positions of the map.
    """

    row: int
    column: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"row {self.row + 1}, column {self.column + 1} of {self.height} x {self.width}"

    def box(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return left, top, right, bottom of the position in pixels of an image.

        The backbone reads the centre square of an image (see `core.image.fit`).
        """
        side = min(size)
        left, top = (size[0] - side) / 2, (size[1] - side) / 2
        step_x, step_y = side / self.width, side / self.height
        return (
            left + self.column * step_x,
            top + self.row * step_y,
            left + (self.column + 1) * step_x,
            top + (self.row + 1) * step_y,
        )


@dataclass(frozen=True)
class Shown:
    """A sample to show: its key, its value, and the place of the value where it has one."""

    key: str
    value: float
    place: Place | None = None


class PictureLoader:
    """Loads pictures of the samples of one table, encoded for a page.

    Args:
        features: the features, with the shards that hold the images.
        table: the samples.
        side: largest side of a picture, in pixels.
    """

    def __init__(self, features: PageFeatures, table: FeatureTable, side: int) -> None:
        self._images, self._side = features.images, side
        self._captions = dict(zip(table.keys, table.captions, strict=True))
        self._shards = dict(zip(table.keys, table.shards, strict=True))
        self.missing = features.missing
        """Reason why the pictures are missing; empty if they are available."""

    def load(self, shown: Sequence[Shown]) -> dict[Shown, Picture]:
        """Return a picture for each sample; none at all, with `missing` set, if the images cannot be read."""
        if self._images is None:
            return {}
        shard_set, fields = self._images
        try:
            images = fetch_images(
                shard_set, dict.fromkeys(one.key for one in shown), shards=self._shards, fields=fields
            )
        except (DiffprobeError, OSError) as error:
            self.missing = reason(error)
            return {}
        encoded = {key: self._encode(image, None) for key, image in images.items()}
        return {
            one: Picture(
                data=encoded[one.key] if one.place is None else self._encode(images[one.key], one.place),
                caption=self._captions[one.key],
                key=one.key,
                value=one.value,
                place="" if one.place is None else str(one.place),
            )
            for one in shown
        }

    def _encode(self, image: Image.Image, place: Place | None) -> bytes:
        small = image.copy()
        small.thumbnail((self._side, self._side))
        if place is not None:
            small = framed(small.convert("RGB"), place)
        buffer = io.BytesIO()
        small.save(buffer, format="WEBP", lossless=True)
        return buffer.getvalue()


def framed(image: Image.Image, place: Place) -> Image.Image:
    """Draw a frame around a place: magenta between two white lines, visible on light and dark images."""
    left, top, right, bottom = (round(edge) for edge in place.box(image.size))
    draw = ImageDraw.Draw(image)
    for grow, colour in ((2, "#ffffff"), (1, "#d6006c"), (0, "#d6006c"), (-1, "#ffffff")):
        box = (
            max(left - grow, 0), max(top - grow, 0),
            min(right - 1 + grow, image.width - 1), min(bottom - 1 + grow, image.height - 1),
        )  # fmt: skip
        if box[0] <= box[2] and box[1] <= box[3]:
            draw.rectangle(box, outline=colour)
    return image
