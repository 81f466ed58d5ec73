"""Pictures as RGB of 8 bits a channel. Owns which ones can be, for shards and backbones alike."""

from PIL import Image


def is_deep(image: Image.Image) -> bool:
    """Tell whether an image has more than 8 bits a channel, which RGB would cut or clip without a word.

    The modes of one channel ("I", "I;16", "F") say so themselves. Pillow has no such mode for colours: only the decoder
    of an image that is opened and not loaded yet knows ("RGB;16B" of a PNG).
    """
    return image.mode.split(";")[0] in ("I", "F") or any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB; transparent parts become white, EXIF rotation is not applied."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")
