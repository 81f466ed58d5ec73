"""Conversion of images to RGB with 8 bits per channel, for shards and backbones."""

from PIL import Image


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
