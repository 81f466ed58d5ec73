"""Check image tensors, and turn PIL images into a batch."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.core.image import is_deep, to_rgb
from diffprobe.core.shapes import Images


def as_batch(images: Tensor | Sequence[Image.Image], resolution: int) -> Images:
    """Bring images to `[batch, 3, resolution, resolution]` in [0, 1], float32.

    PIL images of 8 bits per channel are composited on white, converted to RGB, resized (shorter side, bicubic) and
    centre-cropped, as in the shard stream. Tensors must already have the right size and range; they are
    never rescaled.
    Raises: ConfigError.
    """
    if not isinstance(images, Tensor):
        return torch.stack([_from_pil(image, resolution) for image in images])
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


def _from_pil(image: Image.Image, resolution: int) -> Tensor:
    if is_deep(image):
        raise ConfigError(
            f"an image (mode {image.mode}) has more than 8 bits per channel, and its value range is unknown.",
            fix="scale it to 0..255 and convert it to 8 bits, or pass a tensor in [0, 1]",
        )
    image = to_rgb(image)
    shorter = min(image.size)
    if shorter != resolution:
        width, height = (round(side * resolution / shorter) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (image.width - resolution) // 2, (image.height - resolution) // 2
    image = image.crop((left, top, left + resolution, top + resolution))
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
