"""Dense truth of samples: the class of each pixel from `mask.png`, and its depth from `depth.png`.

Both are cut to the part of the image that a backbone gets (`core.image.fit`) and keep their own number of pixels:
predictions are brought to the size of the truth, and not the truth to theirs.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffprobe.core.errors import ConfigError
from diffprobe.core.image import fit
from diffprobe.shards.annotation import Caps, Fields, fault
from diffprobe.shards.decode import Sample, decode_image, decode_sample
from diffprobe.shards.raw_samples import read_raw_samples

if TYPE_CHECKING:
    from diffprobe.shards.index import ShardSet
    from diffprobe.shards.reader import RawSample

MASK, DEPTH = "mask.png", "depth.png"
"""Files of a sample: one number per pixel, the part or the depth."""
IGNORED = 255
"""Value of a pixel in a class map that is neither fitted nor scored."""
_UNUSED = 254


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseSample:
    """An image with one number of truth per pixel."""

    sample: Sample
    """The sample, with its image at the resolution of the backbone."""
    truth: NDArray[np.uint8] | NDArray[np.uint16]
    """Class (or `IGNORED`) or depth of each pixel, (side, side), at the resolution of the file."""


def read_class_samples(
    shard_set: "ShardSet",
    split: str,
    *,
    classes: Mapping[str, Sequence[int]],
    ignore: Sequence[int] = (),
    fields: Fields,
    resolution: int,
    limit: int | None = None,
    caps: Caps | None = None,
) -> Iterator[DenseSample]:
    """Yield the samples of a split with their class maps, in shard order.

    Args:
        classes: class -> the values of `mask.png` that it has; the class map holds positions in this mapping.
        ignore: values of `mask.png` that are `IGNORED` in the class map, for example those of unlabelled borders.
        resolution: height and width of the image that the backbone gets.
        limit: number of samples, the first ones in shard order; None for all.

    Raises: ConfigError for a value in two classes, or in a class and ignored; SampleError, with shard and key, for a
        sample without a readable mask, with one of another size than its image, with a value that no class has, or with
        no pixel of a class; UnknownName for a split that the set does not have.
    """
    table = class_table(classes, ignore)
    for raw in read_raw_samples(shard_set, split, limit=limit, caps=caps):
        values = _numbers(raw, MASK, decode_image(raw, fields, caps=caps).size)
        found = table[values]
        if (found == _UNUSED).any():
            other = int(values[found == _UNUSED].min())
            known = sorted(value for own in classes.values() for value in own)
            raise fault(
                raw,
                f"'{MASK}' has the value {other}, which is in no class; classes have {known}, ignore {list(ignore)}",
            )
        sample = decode_sample(raw, shard_set, fields=fields, resolution=resolution, caps=caps)
        truth = _cut(found)
        if (truth == IGNORED).all():
            raise fault(raw, f"'{MASK}' has no pixel of a class in the part of the image that is read")
        yield DenseSample(sample=sample, truth=truth)


def read_depth_samples(
    shard_set: "ShardSet",
    split: str,
    *,
    fields: Fields,
    resolution: int,
    limit: int | None = None,
    caps: Caps | None = None,
    wide: bool = False,
) -> Iterator[DenseSample]:
    """Yield the samples of a split with the numbers of `depth.png`, in shard order; 0 stands for no known depth.

    In rendered scenes these are levels: 0 is the background, and what has a larger level is nearer.

    Args:
        wide: accept 16 bits per pixel, as depth in millimetres needs; the truth is then uint16.

    Raises: SampleError, with shard and key, for a sample without a readable `depth.png` of the size of its image.
    """
    for raw in read_raw_samples(shard_set, split, limit=limit, caps=caps):
        values = _numbers(raw, DEPTH, decode_image(raw, fields, caps=caps).size, wide=wide)
        sample = decode_sample(raw, shard_set, fields=fields, resolution=resolution, caps=caps)
        yield DenseSample(sample=sample, truth=_cut(values))


def class_table(classes: Mapping[str, Sequence[int]], ignore: Sequence[int] = ()) -> NDArray[np.uint8]:
    """Return value of the mask -> position of its class, `IGNORED` for values that are left out, 254 for all others.

    Raises: ConfigError for fewer than two classes, a class without values, a value in two classes, in a class and in
        `ignore`, or out of range.

    >>> class_table({"background": (0,), "figure": (2, 3)}, ignore=(255,))[[0, 1, 2, 3, 255]].tolist()
    [0, 254, 1, 1, 255]
    """
    if not 2 <= len(classes) <= _UNUSED:
        raise ConfigError(f"classes: there are {len(classes)}.", f"allowed: from 2 to {_UNUSED}")
    table = np.full(256, _UNUSED, np.uint8)
    named = [(f"classes.{name}", place, values) for place, (name, values) in enumerate(classes.items())]
    for name, place, values in (*named, ("ignore", IGNORED, ignore)):
        if not values and place != IGNORED:
            raise ConfigError(f"{name} has no value of '{MASK}'.")
        for value in values:
            if not 0 <= value <= 255:
                raise ConfigError(f"{name}: {value} is not a value of '{MASK}'.", "allowed: from 0 to 255")
            if table[value] != _UNUSED:
                raise ConfigError(f"{name}: the value {value} is taken already, by a class or by ignore.")
            table[value] = place
    return table


def _numbers(
    raw: "RawSample", file: str, size: tuple[int, int], *, wide: bool = False
) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the numbers of a file, (height, width). Raises: SampleError."""
    if file not in raw.files:
        raise fault(raw, f"there is no '{file}', which has the truth of each pixel")
    try:
        with Image.open(io.BytesIO(raw.files[file]), formats=("PNG",)) as image:
            own, mode = image.size, image.mode
            values = np.array(image) if own == size else None
    except (OSError, SyntaxError, ValueError) as error:
        raise fault(raw, f"cannot decode '{file}' ({type(error).__name__})") from error
    if values is None:
        raise fault(raw, f"'{file}' has {own[0]} x {own[1]} pixels, the image {size[0]} x {size[1]}")
    if wide and mode in ("I;16", "I"):
        return values.astype(np.uint16)
    if mode not in ("P", "L"):
        allowed = "P, L or 16 bits" if wide else "P or L"
        raise fault(raw, f"'{file}' has the mode {mode}; expected one number per pixel ({allowed})")
    return values.astype(np.uint16) if wide else values.astype(np.uint8)


def _cut(values: NDArray[np.uint8] | NDArray[np.uint16]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Return the centre square of a map, whose pixels stay as they are."""
    found = np.array(fit(Image.fromarray(values), min(values.shape), resample=Image.Resampling.NEAREST))
    return found.astype(np.uint8) if values.dtype == np.uint8 else found.astype(np.uint16)
