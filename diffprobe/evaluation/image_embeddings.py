"""Embeddings of images for the MonoSemanticity score, by an encoder that can be exchanged.

The paper takes DINOv2 and CLIP. At hand without a download are the pixels and the VAE of the run's own backbone; any
callable with a name can be in their place. The score is of its encoder, so its name is part of the result.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, NonFinite

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffprobe.backbones.base import Backbone

_AT_ONCE = 64
"""Images that are held at once."""


class ImageEncoder(Protocol):
    """Turns images into vectors."""

    @property
    def name(self) -> str:
        """How results name the encoder, for example "pixels, 16 x 16"."""

    def __call__(self, images: "Sequence[Image]") -> NDArray[np.float32]:
        """Return one vector per RGB image, (images, d), each encoded by itself."""


class PixelEncoder:
    """The pixels of an image at a small size, from -1 to 1: alike in colour and layout is alike.

    Args:
        side: side of the small image, at least 1.
    """

    def __init__(self, side: int = 16) -> None:
        if side < 1:
            raise ConfigError(f"pixels: side={side}; allowed: at least 1.")
        self.side = side

    @property
    def name(self) -> str:
        """Name and size."""
        return f"pixels, {self.side} x {self.side}"

    def __call__(self, images: "Sequence[Image]") -> NDArray[np.float32]:
        """Return the pixels, (images, side x side x 3)."""
        from diffprobe.backbones.preprocess import as_batch

        batch = 2 * as_batch(list(images), self.side) - 1
        found: NDArray[np.float32] = batch.flatten(1).numpy()
        return found


class LatentEncoder:
    """The VAE latents of a backbone, flattened; of a pixel model its pixels.

    Args:
        backbone: the loaded backbone.
        resolution: side of the images that it encodes, in pixels.
        model: its name.
    """

    def __init__(self, backbone: "Backbone", resolution: int, model: str) -> None:
        self._backbone, self._resolution, self._model = backbone, resolution, model

    @property
    def name(self) -> str:
        """Name of the model and size."""
        return f"VAE latents of {self._model} at {self._resolution} pixels"

    def __call__(self, images: "Sequence[Image]") -> NDArray[np.float32]:
        """Return the latents, (images, channels x height x width)."""
        import torch

        from diffprobe.backbones.preprocess import as_batch

        device = next(self._backbone.denoiser.parameters()).device
        with torch.no_grad():
            latents = self._backbone.encode_images(as_batch(list(images), self._resolution).to(device))
        found: NDArray[np.float32] = latents.flatten(1).float().cpu().numpy()
        return found


class ClipEncoder:
    """The image embeddings of a CLIP model.

    Args:
        folder: the model in transformers' format, or its hub id.
        device: torch device.

    Raises: as `load_zero_shot`.
    """

    def __init__(self, folder: str, device: str = "auto") -> None:
        from diffprobe.backbones.zero_shot import load_zero_shot

        self._model = load_zero_shot(folder, ("image", "picture"), device=device)  # its texts are not used

    @property
    def name(self) -> str:
        """Name of the model."""
        return f"CLIP {self._model.name}"

    def __call__(self, images: "Sequence[Image]") -> NDArray[np.float32]:
        """Return the embeddings, (images, d)."""
        found: NDArray[np.float32] = self._model.embed(images).numpy()
        return found


def embed_images(
    keys: Iterable[str], fetch: "Callable[[list[str]], Mapping[str, Image]]", encoder: ImageEncoder
) -> dict[str, NDArray[np.float32]]:
    """Return the embedding of each image.

    Args:
        keys: keys of the images: those of `SparseCodes.keys`, not of the whole data set.
        fetch: returns the images of some keys, such as `features.fetch_images` with its other arguments.
        encoder: the encoder.

    Raises: ConfigError for an encoder that returns another number of vectors or other shapes; NonFinite; the errors of
        `fetch`.
    """
    wanted, found = list(dict.fromkeys(keys)), dict[str, NDArray[np.float32]]()
    width = None
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        images = fetch(part)
        vectors = np.asarray(encoder([images[key] for key in part]), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(part) or (width is not None and vectors.shape[1] != width):
            raise ConfigError(
                f"encoder '{encoder.name}' returned the shape {vectors.shape} for {len(part)} images.",
                f"needed: ({len(part)}, {'d' if width is None else width})",
            )
        if not np.isfinite(vectors).all():
            bad = part[int(np.flatnonzero(~np.isfinite(vectors).all(1))[0])]
            raise NonFinite(f"encoder '{encoder.name}' gave image '{bad}' a vector that is not finite.")
        width = vectors.shape[1]
        found.update(zip(part, vectors, strict=True))
    return found
