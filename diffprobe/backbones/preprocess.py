"""Check image tensors, and turn PIL images into a batch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.core.image import fit, is_deep, to_rgb
from diffprobe.core.shapes import Images

_INSTEAD: dict[type, str] = {
    Image.Image: "pass a list: [image]",
    np.ndarray: "arrays [batch, height, width, 3] of uint8: [Image.fromarray(x) for x in images]",
    Tensor: "torch.stack(images), or images[None] for a single one: [batch, 3, height, width] in [0, 1]",
    str: "open them: [PIL.Image.open(path) for path in paths]",
    Path: "open them: [PIL.Image.open(path) for path in paths]",
}
"""What is given in place of images -> what to write."""


def as_batch(images: Tensor | Sequence[Image.Image], resolution: int) -> Images:
    """Bring images to `[batch, 3, resolution, resolution]` in [0, 1], float32.

    PIL images of 8 bits per channel are composited on white, converted to RGB, resized (shorter side, bicubic) and
    centre-cropped, as in the shard stream. Tensors must already have the right size and range; they are
    never rescaled.
    Raises: ConfigError, also for arrays, single images and file names, with what to write in their place.
    """
    if not isinstance(images, Tensor):
        return torch.stack([_from_pil(image, resolution) for image in check_images(images)])
    if not images.is_floating_point() or images.ndim != 4 or images.shape[1] != 3:
        raise ConfigError(
            f"images must be float, [batch, 3, height, width] in [0, 1]; got {images.dtype} {list(images.shape)}.",
            fix="for PIL images pass the list; for uint8 tensors divide by 255",
        )
    if tuple(images.shape[2:]) != (resolution, resolution):
        raise ConfigError(
            f"images of {images.shape[2]} x {images.shape[3]} px for an extractor at {resolution} px.",
            fix=f"decode at resolution={resolution}, or set features.resolution",
        )
    low, high = (float(value) for value in torch.aminmax(images.detach())) if images.numel() else (0.0, 0.0)
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also true for NaN
        raise ConfigError(
            f"image values lie in [{low:.3g}, {high:.3g}]; [0, 1] is expected.", fix="pass RGB values divided by 255"
        )
    return images.float()


def check_images(images: object) -> Sequence[Image.Image]:
    """Return `images` if it is a list or tuple of PIL images. Raises: ConfigError."""
    if isinstance(images, (list, tuple)) and all(isinstance(image, Image.Image) for image in images):
        return images
    listed = isinstance(images, (list, tuple))
    odd = next(x for x in images if not isinstance(x, Image.Image)) if listed else images  # type: ignore[attr-defined]
    fix = next((text for kind, text in _INSTEAD.items() if isinstance(odd, kind)), "pass a list of PIL images")
    given = f"a {type(images).__name__} with a {type(odd).__name__}" if listed else f"a {type(odd).__name__}"
    raise ConfigError(f"images must be a list of PIL images or a float tensor; got {given}.", fix=fix)


def _from_pil(image: Image.Image, resolution: int) -> Tensor:
    if is_deep(image):
        raise ConfigError(
            f"an image (mode {image.mode}) has more than 8 bits per channel, and its value range is unknown.",
            fix="scale it to 0..255 and convert it to 8 bits, or pass a tensor in [0, 1]",
        )
    image = to_rgb(image)
    if min(image.size) == 0:
        raise ConfigError(f"an image has {image.width} x {image.height} px: it is empty.")
    return _to_tensor(fit(image, resolution))


def _to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
