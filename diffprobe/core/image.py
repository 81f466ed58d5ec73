"""Conversion of images to RGB squares with 8 bits per channel, for shards and backbones."""

from PIL import Image

LONG = 16
"""Ratio of the sides of an image above which it is cropped before it is resized."""


def is_deep(image: Image.Image) -> bool:
    """Return whether an image has more than 8 bits per channel, which a conversion to RGB would truncate or clip.

    Images with one channel have the modes "I", "I;16" and "F". Pillow has no such mode for colours; the depth is known
    only to the decoder of an image that is open but not loaded ("RGB;16B" of a PNG).
    """
    return image.mode.split(";")[0] in ("I", "F") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB; transparent parts become white, EXIF rotation is not applied."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def fit(
    image: Image.Image, resolution: int, *, resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:  # fmt: skip
    """Resize the shorter side of an image to `resolution` pixels and crop the centre square.

    An image of that size is returned unchanged. Of an image that is more than `LONG` times as long as wide, the centre
    is cropped first, so that the resized image needs little memory; both orders agree up to rounding.

    Args:
        image: the image.
        resolution: side of the result in pixels.
        resample: bicubic for pictures, nearest for masks.
    """
    width, height = image.size
    shorter, longer = min(width, height), max(width, height)
    if image.size == (resolution, resolution):
        return image
    if longer > LONG * shorter:
        left, top = (width - shorter) / 2, (height - shorter) / 2
        box = (left, top, left + shorter, top + shorter)
        return image.resize((resolution, resolution), resample, box=box)
    if shorter != resolution:
        size = (round(width * resolution / shorter), round(height * resolution / shorter))
        image = image.resize(size, resample)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    return image.crop((left, top, left + resolution, top + resolution))
