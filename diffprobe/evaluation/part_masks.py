"""Masks of the parts of images, from the shards: stored ones, transparency, or what a plain background leaves.

A set with `mask.png` (docs: shards/PROTOCOL.md) has the part of each pixel. Of other sets the foreground is what is
opaque, where images have transparency; else what differs from a background of one colour that reaches the border, as of
drawings on white. An image without any of these has no mask.
"""

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import lcm

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffprobe.analysis.certification.pointing import covered_places
from diffprobe.core.errors import SampleError
from diffprobe.core.image import fit
from diffprobe.shards.annotation import Caps, Fields, image_field
from diffprobe.shards.decode import decode_image
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import RawSample
from diffprobe.shards.scenes.spec import MASKS

Bools = NDArray[np.bool_]
MEMBER = "mask.png"
FOREGROUND, BACKGROUND = "foreground", "background"
_PLAIN = 0.9
"""Least share of the border's pixels that have one colour, for a background to be plain."""
_OPAQUE = 128
_MAX_PARTS = 32
"""Largest number of parts of a set whose parts have no names: those in the most images."""
_SIDE = 128
"""Largest side at which masks are compared with maps, unless maps have more places."""
KINDS = {
    "stored": f"{MEMBER} of the samples", "transparency": "the transparency of the images",
    "plain": "what differs from a background of one colour",
}  # fmt: skip
"""Where masks are from -> how pages say it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PartMasks:
    """The places that parts cover, in some images of a split."""

    names: tuple[str, ...]
    """Names of the parts."""
    covered: Mapping[str, Bools]
    """Key of an image -> whether each part covers each place, (parts, places); images without a mask are left out."""
    source: str
    """Where the masks are from: a value of `KINDS`; "" without any mask."""


def read_masks(
    shard_set: ShardSet, split: str, keys: Iterable[str], size: tuple[int, int], *, fields: Fields,
    caps: Caps | None = None,
) -> PartMasks:  # fmt: skip
    """Read the masks of some images; their shards are read in order, one sample at a time.

    A place is covered by a part that has a pixel in the place's part of the image. Masks are resized and cropped as the
    images are.

    Args:
        shard_set: the set.
        split: split of the images.
        keys: keys of the images.
        size: height and width of the maps.
        fields: names of the files of a sample.
        caps: largest parts of a sample that are read.

    Raises: ShardError for a shard that changed; SampleError for a stored mask that cannot be read or has another size
        than its image; OSError.
    """
    wanted, names = set(keys), shard_set.fields_for(fields)
    kind, found = "", dict[str, NDArray[np.uint8]]()
    for shard in shard_set.shards_of(split):
        if not wanted:
            break
        shard_set.check(shard.file)
        for raw in shard_set.read(shard.file, caps=caps):
            if raw.key not in wanted:
                continue
            wanted.discard(raw.key)
            kind = kind or _kind(raw, names)
            ids = _ids(raw, kind, names, caps)
            if ids is not None:
                found[raw.key] = _square(ids, size)
    parts = _parts(shard_set.name, kind, found.values())
    covered = {
        key: covered_places(np.stack([np.isin(ids, of) for of in parts.values()]), size, 0)
        for key, ids in found.items()
    }
    return PartMasks(
        names=tuple(parts), source=KINDS[kind] if found else "",
        covered={key: places.reshape(len(parts), -1) for key, places in covered.items()},
    )  # fmt: skip


def _kind(raw: RawSample, fields: Fields) -> str:
    """Return where the masks of a set are from, by its first sample."""
    if MEMBER in raw.files:
        return "stored"
    with Image.open(io.BytesIO(raw.files[image_field(raw, fields)])) as image:
        return "transparency" if image.has_transparency_data else "plain"


def _ids(raw: RawSample, kind: str, fields: Fields, caps: Caps | None) -> NDArray[np.uint8] | None:
    """Return the part of each pixel, (height, width); None for an image without a mask. Raises: SampleError."""
    if kind == "stored":
        if MEMBER not in raw.files:
            return None
        shape = decode_image(raw, fields, caps=caps).size
        try:
            with Image.open(io.BytesIO(raw.files[MEMBER]), formats=("PNG",)) as stored:
                fits = stored.mode in ("L", "P") and stored.size == shape
                ids = np.array(stored, dtype=np.uint8) if fits else None
        except (OSError, SyntaxError, ValueError) as error:
            raise SampleError(f"{raw.shard}, sample '{raw.key}': '{MEMBER}' cannot be read ({error}).") from error
        if ids is None:
            raise SampleError(
                f"{raw.shard}, sample '{raw.key}': '{MEMBER}' has mode {stored.mode} and size {stored.size}.",
                f"needed: a palette or greyscale PNG of the size of the image, {shape}",
            )
        return ids
    image = decode_image(raw, fields, caps=caps)  # compares the size with its cap
    if kind == "transparency":
        with Image.open(io.BytesIO(raw.files[image_field(raw, fields)])) as stored:
            if not stored.has_transparency_data:
                return None
            return (np.array(stored.convert("RGBA"))[..., 3] >= _OPAQUE).astype(np.uint8)
    return outside_plain(np.array(image))


def outside_plain(pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    """Return 1 where an image differs from its plain background, else 0; None where it has none.

    The background is the pixels of the border's colour that are connected with the border.

    Args:
        pixels: an RGB image, (height, width, 3).
    """
    from scipy.ndimage import label  # heavy

    packed = (pixels.astype(np.int64) * (65536, 256, 1)).sum(2)
    border = np.concatenate([packed[0], packed[-1], packed[1:-1, 0], packed[1:-1, -1]])
    colours, counts = np.unique(border, return_counts=True)
    if counts.max() < _PLAIN * len(border):
        return None
    regions, _ = label(packed == colours[counts.argmax()])
    edge = np.unique(np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]]))
    return (~np.isin(regions, edge[edge > 0])).astype(np.uint8)


def _square(ids: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the centre square of a mask, at a side that the places of the map divide."""
    step = lcm(*size)
    side = step * max(1, round(min(*ids.shape, max(_SIDE, step)) / step))
    return np.array(fit(Image.fromarray(ids), side, resample=Image.Resampling.NEAREST))


def _parts(name: str, kind: str, masks: Iterable[NDArray[np.uint8]]) -> dict[str, tuple[int, ...]]:
    """Return the names of the parts -> their ids in the masks."""
    if kind != "stored":
        return {FOREGROUND: (1,), BACKGROUND: (0,)}
    if name.startswith("scenes"):
        return dict(MASKS)
    counts = np.zeros(256, dtype=np.int64)
    for ids in masks:
        counts[np.unique(ids)] += 1
    used = np.sort(np.argsort(-counts, kind="stable")[:_MAX_PARTS])
    return {f"part {i}" if i else BACKGROUND: (i,) for i in used.tolist() if counts[i]}
