"""Bytes to samples: the image as RGB at the wanted size, label and attributes checked against the index.

What a sample's files say is read in annotation.py; samples become batches in batch.py.
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
        key: identity, unique in the shard set.
        image: RGB, 8 bits a channel.
        label: index into the classes of the set, -1 for none.
        class_name: the name of that class, "" for none.
        caption: the caption, "" for none.
        captions: all captions that fit, the caption itself if there are no others.
        attributes: value by attribute name; unknown ones are left out.
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
    """Turn the files of a sample into a Sample.

    Args:
        raw: the sample as it stands in the shard.
        shard_set: gives classes and attribute values, which the sample must fit.
        fields: which file and key holds what.
        resolution: height and width in pixels that the image is brought to (see `fit`); None keeps its size.

    Raises: SampleError, named by shard and key: no image or one that can't be decoded to its end, a label or attribute
        value that the index does not hold, a class name that is not the label's.
    """
    annotation = parse_annotation(raw, fields)
    classes, label = shard_set.classes, annotation.label
    if label is None and annotation.class_name is not None:
        if annotation.class_name not in classes:
            raise fault(raw, f"class '{annotation.class_name}' is not in the index")
        label = classes.index(annotation.class_name)
    if label is not None and label >= len(classes):
        raise fault(raw, f"label {label} is outside of the {len(classes)} classes of the index")
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

    Raises: SampleError if there is not exactly one image, or it is cut off, of another format than JPEG, PNG and WebP,
        or deeper than 8 bits a channel.
    """
    name = image_field(raw, fields)
    try:
        image = Image.open(io.BytesIO(raw.files[name]), formats=FORMATS)
        deep = is_deep(image)
        image.load()
    except Exception as error:  # on broken bytes decoders raise OSError, SyntaxError, struct.error and others
        raise fault(raw, f"image '{name}' can't be decoded ({type(error).__name__}: {error})") from error
    if deep:
        raise fault(raw, f"image '{name}' has more than 8 bits a channel; convert it to 8 bits")
    return to_rgb(image)


def fit(image: Image.Image, resolution: int) -> Image.Image:
    """Bring an image to `resolution` x `resolution` pixels: scale its shorter side (bicubic), cut out the centre.

    An image of that size already is returned as it is.
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
