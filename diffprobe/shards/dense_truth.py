"""Named points and object boxes of samples: `points.json` and `mask.png` beside the image.

Both are in pixels of the stored image. They are converted to pixels of the image that a backbone gets, which is resized
and cropped (`core.image.fit`).
"""

import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from diffprobe.core.errors import ConfigError, unknown
from diffprobe.shards.annotation import Caps, Fields, fault
from diffprobe.shards.decode import Sample, decode_image, decode_sample
from diffprobe.shards.raw_samples import read_raw_samples

if TYPE_CHECKING:
    from diffprobe.shards.index import ShardSet
    from diffprobe.shards.reader import RawSample

POINTS, MASK = "points.json", "mask.png"
"""Files of a sample: name -> [x, y], and the part at each pixel."""
Point = tuple[float, float]
"""x and y in pixels from the upper left corner; pixel i reaches from i to i + 1."""


@dataclass(frozen=True, kw_only=True)
class PointSample:
    """An image with its named points."""

    sample: Sample
    """The sample, with its image at the resolution of the backbone."""
    points: dict[str, Point]
    """The points inside the image, by name."""
    box: tuple[float, float] | None
    """Width and height in pixels of the box around the object; None without parts that make it."""


def read_point_samples(
    shard_set: "ShardSet",
    split: str,
    *,
    fields: Fields,
    resolution: int,
    box_parts: Sequence[int] = (),
    limit: int | None = None,
    caps: Caps | None = None,
) -> Iterator[PointSample]:
    """Yield the samples of a split with their points, in shard order.

    Args:
        shard_set: the set, or its view with a validation split.
        resolution: height and width of the image that the backbone gets.
        box_parts: values of `mask.png` that are the object, around which the box is; none for no box.
        limit: number of samples, the first ones in shard order; None for all.

    Raises: SampleError, with shard and key, for a sample without readable points or, with `box_parts`, without a mask
        of its image that has one of these parts; UnknownName for a split that the set does not have.
    """
    for raw in read_raw_samples(shard_set, split, limit=limit, caps=caps):
        yield _read(raw, shard_set, fields, resolution, box_parts, caps)


def _read(
    raw: "RawSample",
    shard_set: "ShardSet",
    fields: Fields,
    resolution: int,
    box_parts: Sequence[int],
    caps: Caps | None,
) -> PointSample:
    whole = decode_image(raw, fields, caps=caps).size
    scale, offset = placement(whole, resolution)
    found = {name: (x * scale[0] - offset[0], y * scale[1] - offset[1]) for name, (x, y) in _points(raw).items()}
    inside = {name: (x, y) for name, (x, y) in found.items() if 0 <= x < resolution and 0 <= y < resolution}
    box = None
    if box_parts:
        width, height = _box(raw, whole, box_parts)
        box = (width * scale[0], height * scale[1])
    sample = decode_sample(raw, shard_set, fields=fields, resolution=resolution, caps=caps)
    return PointSample(sample=sample, points=inside, box=box)


def placement(size: tuple[int, int], resolution: int) -> tuple[Point, Point]:
    """Return the scale (x, y) by which `core.image.fit` resizes an image, and what it then cuts off (left, top).

    Args:
        size: width and height in pixels.

    >>> placement((200, 100), 50)
    ((0.5, 0.5), (25.0, 0.0))
    """
    shorter = min(size)
    new = [max(resolution, round(side * resolution / shorter)) for side in size]
    scale = (new[0] / size[0], new[1] / size[1])
    return scale, (float((new[0] - resolution) // 2), float((new[1] - resolution) // 2))


def _points(raw: "RawSample") -> dict[str, Point]:
    if POINTS not in raw.files:
        raise fault(raw, f"there is no '{POINTS}', which has the named points of the image")
    try:
        tree = json.loads(raw.files[POINTS])
        found = {str(name): (float(x), float(y)) for name, (x, y) in tree.items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise fault(raw, f"'{POINTS}' does not have the form {{name: [x, y]}}", str(error)) from error
    for name, point in found.items():
        if not all(map(math.isfinite, point)):
            raise fault(raw, f"'{POINTS}': point '{name}' is not finite")
    return found


def _box(raw: "RawSample", whole: tuple[int, int], box_parts: Sequence[int]) -> tuple[int, int]:
    """Return width and height of the box around some parts of the mask, in its own pixels."""
    if MASK not in raw.files:
        raise fault(raw, f"there is no '{MASK}', which has the object that the box is around")
    try:
        with Image.open(io.BytesIO(raw.files[MASK]), formats=("PNG",)) as image:
            size, mode, mask = image.size, image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise fault(raw, f"cannot decode '{MASK}' ({type(error).__name__})") from error
    if size != whole:
        raise fault(raw, f"'{MASK}' has {size[0]} x {size[1]} pixels, the image {whole[0]} x {whole[1]}")
    if mode not in ("P", "L"):
        raise fault(raw, f"'{MASK}' has the mode {mode}; expected one number per pixel (P or L)")
    rows, columns = np.nonzero(np.isin(mask, box_parts))
    if not len(rows):
        raise fault(raw, f"'{MASK}' has none of the parts {', '.join(map(str, box_parts))}")
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


def require_points(samples: Sequence[PointSample], names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the names of the points to use: the given ones, or all that occur.

    Args:
        what: the samples, for messages.

    Raises: UnknownName for a name that no sample has; ConfigError for samples without any point.
    """
    known = sorted({name for one in samples for name in one.points})
    if not known:
        raise ConfigError(f"{what}: no sample has a named point inside its image.")
    for name in names:
        if name not in known:
            raise unknown(f"point of {what}:", name, known)
    return tuple(names) or tuple(known)
