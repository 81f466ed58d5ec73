"""Decode samples: the image as RGB at the requested size, label and attributes validated against the index.

Annotations are read by annotation.py; batch.py collates samples.
"""

import io
from dataclasses import dataclass

from PIL import Image

from diffprobe.core.image import is_deep, to_rgb
from diffprobe.shards.annotation import Fields, fault, image_field, parse_annotation
from diffprobe.shards.index import ShardSet
from diffprobe.shards.reader import RawSample

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


def decode_sample(raw: RawSample, shard_set: ShardSet, *, fields: Fields, resolution: int | None = None) -> Sample:
    """Decode the files of a sample.

    Args:
        raw: the sample as read from the shard.
        shard_set: the set with the allowed classes and attribute values.
        fields: names of the files and keys of a sample.
        resolution: height and width of the image in pixels (see `fit`); None keeps its size.

    Raises: SampleError, with shard and key, for a missing or undecodable image, a label or attribute value that is not
        in the index, or a class name that contradicts the label.
    """
    annotation = parse_annotation(raw, fields)
    classes, label = shard_set.classes, annotation.label
    if label is None and annotation.class_name is not None:
        if annotation.class_name not in classes:
            raise fault(raw, f"class '{annotation.class_name}' is not in the index")
        label = classes.index(annotation.class_name)
    if label is not None and label >= len(classes):
        raise fault(raw, f"label {label} is out of range: the index has {len(classes)} classes")
    if label is not None and annotation.class_name not in (None, classes[label]):
        raise fault(raw, f"label {label} is '{classes[label]}' in the index and '{annotation.class_name}' here")
    for name, value in annotation.attributes.items():
        if value not in shard_set.attributes.get(name, ()):
            raise fault(raw, f"attribute {name}='{value}' is not in the index")
    image = decode_image(raw, fields)
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


def decode_image(raw: RawSample, fields: Fields) -> Image.Image:
    """Decode the image of a sample to RGB; transparent parts become white, EXIF rotation is not applied.

    Raises: SampleError for several images or none, and for an image that is truncated, has another format than JPEG,
        PNG or WebP, or more than 8 bits per channel.
    """
    name = image_field(raw, fields)
    try:
        image = Image.open(io.BytesIO(raw.files[name]), formats=FORMATS)
        deep = is_deep(image)
        image.load()
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error and others
        raise fault(raw, f"cannot decode image '{name}' ({type(error).__name__}: {error})") from error
    if deep:
        raise fault(raw, f"image '{name}' has more than 8 bits per channel; convert it to 8 bits")
    return to_rgb(image)


def fit(image: Image.Image, resolution: int) -> Image.Image:
    """Resize the shorter side of an image to `resolution` pixels (bicubic) and crop the centre square.

    An image of that size is returned unchanged.
    """
    width, height = image.size
    shorter = min(width, height)
    if shorter != resolution:
        size = (round(width * resolution / shorter), round(height * resolution / shorter))
        image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    if image.size == (resolution, resolution):
        return image
    return image.crop((left, top, left + resolution, top + resolution))
