"""Decode samples: the image as RGB at the requested size, label and attributes validated against the index.

Annotations are read by annotation.py; batch.py collates samples.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from diffprobe.core.errors import SampleError
from diffprobe.core.image import fit, is_deep, to_rgb
from diffprobe.shards.annotation import Caps, Fields, fault, image_field, parse_annotation
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import RawSample
from diffprobe.shards.scan import numbered

FORMATS = ("JPEG", "PNG", "WEBP")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One captioned image.

    Attributes:
        key: identity of the sample, unique in the shard set.
        image: RGB, 8 bits per channel.
        label: index into the classes of the set, -1 for none.
        class_name: the name of that class, "" for none.
        caption: the caption, "" for none.
        captions: all captions of the sample; only `caption` if there are no others.
        attributes: attribute name -> value, without unknown values.
        shard: file name of the shard.
    """

    key: str
    image: Image.Image
    label: int
    class_name: str
    caption: str
    captions: tuple[str, ...]
    attributes: dict[str, str]
    shard: str

    def has(self, column: str) -> bool:
        """Return whether there is a value of `caption`, `label`, `class_name`, or an attribute."""
        if column == "caption":
            return bool(self.caption)
        return self.label >= 0 if column in ("label", "class_name") else column in self.attributes


def decode_sample(
    raw: RawSample, shard_set: ShardSet, *, fields: Fields, resolution: int | None = None, caps: Caps | None = None
) -> Sample:
    """Decode the files of a sample.

    Args:
        raw: the sample as read from the shard.
        shard_set: the set with the allowed classes and attribute values.
        fields: names of the files and keys of a sample.
        resolution: height and width of the image in pixels (see `fit`); None keeps its size.
        caps: largest parts of a sample that are read.

    Raises: SampleError, with shard and key, for a missing or undecodable image, a label or attribute value that is not
        in the index, or a class name that contradicts the label.
    """
    caps = caps or Caps()
    annotation = parse_annotation(raw, fields, renamed=shard_set.renamed, caps=caps)
    classes, label, class_name = shard_set.classes, annotation.label, annotation.class_name
    if label is None and class_name is not None:
        if class_name not in shard_set.class_ids:
            raise fault(raw, f"class '{class_name}' is not in the index")
        label = shard_set.class_ids[class_name]
    if label is not None and label >= len(classes):
        raise fault(raw, f"label {label} is out of range: the index has {len(classes)} classes")
    if label is not None and class_name is not None and classes[label] not in (class_name, numbered(class_name, label)):
        raise fault(raw, f"label {label} is '{classes[label]}' in the index and '{class_name}' here")
    for name, value in annotation.attributes.items():
        if value not in shard_set.attribute_ids.get(name, ()):
            raise fault(raw, f"attribute {name}='{value}' is not in the index")
    image = decode_image(raw, fields, caps=caps)
    return Sample(
        key=raw.key,
        image=image if resolution is None else fit(image, resolution),
        label=-1 if label is None else label,
        class_name="" if label is None else classes[label],
        caption=annotation.caption,
        captions=annotation.captions,
        attributes=annotation.attributes,
        shard=raw.shard,
    )


def decode_image(raw: RawSample, fields: Fields, *, caps: Caps | None = None) -> Image.Image:
    """Decode the image of a sample to RGB; transparent parts become white, EXIF rotation is not applied.

    Raises: SampleError for several images or none, and for an image that is truncated, has another format than JPEG,
        PNG or WebP, more than 8 bits per channel, or more pixels than its cap.
    """
    name = image_field(raw, fields)
    limit = (caps or Caps()).image_pixels
    try:
        with _without_pillow_limit():
            image = Image.open(io.BytesIO(raw.files[name]), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise fault(raw, f"cannot decode image '{name}' (neither JPEG, PNG nor WebP)") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and others
        raise _undecodable(raw, name, error) from error
    width, height = image.size
    if width * height > limit:
        raise fault(
            raw,
            f"image '{name}' has {width:,} x {height:,} pixels, more than {limit:,}, the cap data.caps.image_pixels "
            "(--cap image_pixels=N)",
        )
    try:
        deep = is_deep(image)
        image.load()
    except Exception as error:
        raise _undecodable(raw, name, error) from error
    if deep:
        raise fault(raw, f"image '{name}' has more than 8 bits per channel; convert it to 8 bits")
    return to_rgb(image)


def _undecodable(raw: RawSample, name: str, error: Exception) -> SampleError:
    """Return the error of a damaged image; the decoder's own text may differ between processes, so it is a detail."""
    return fault(raw, f"cannot decode image '{name}' ({type(error).__name__})", f"Pillow: {error}")


@contextmanager
def _without_pillow_limit() -> Iterator[None]:
    """Let Pillow open images of any size: it reads the header only, and the size is compared with our own cap."""
    before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
