"""Augmentation of training images: shifted and scaled views, fixed by (seed, key, view).

They keep a denoiser from memorising images pixel by pixel. Views are never mirrored: a mirrored "left arrow" would
contradict its caption.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.core.shapes import Images
from diffprobe.shards.views import resample


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig:
    """Number of views per image, and how far they differ from it."""

    n_views: int = 6
    """Views per image, at least 1; view 0 is the image itself."""
    p_original: float = 0.5
    """Share of training samples that use the image itself, 0..1."""
    shift: float = 0.05
    """Largest shift, as a fraction of the side length, 0 to below 1."""
    zoom: float = 0.1
    """Largest change of scale, as a fraction of it, 0 to below 1."""

    def __post_init__(self) -> None:
        for name, value, is_valid, allowed in (
            ("n_views", self.n_views, self.n_views >= 1, "at least 1"),
            ("p_original", self.p_original, 0 <= self.p_original <= 1, "0 to 1"),
            ("shift", self.shift, 0 <= self.shift < 1, "0 to below 1"),
            ("zoom", self.zoom, 0 <= self.zoom < 1, "0 to below 1"),
        ):
            if not is_valid:
                raise ConfigError(f"augmentation: {name}={value} is out of range: {allowed}.")

    def choose(self, batch: int, generator: torch.Generator) -> Int[Tensor, " batch"]:
        """Choose a view for each sample of a batch: integers from 0 to n_views - 1."""
        original, other = torch.rand(2, batch, generator=generator)
        is_original = (original < self.p_original) | (self.n_views == 1)
        return torch.where(is_original, 0, 1 + (other * (self.n_views - 1)).long())

    def apply(self, images: Images, view: int, keys: list[str], seed: int) -> Images:
        """Return one view of each image; pixels from outside the image repeat its border.

        Args:
            images: in [0, 1].
            view: 0 to n_views - 1.
            keys: one per image.
            seed: of shifts and scales.
        """
        if view == 0:
            return images
        offsets = torch.stack([self._offsets(seed, key, view) for key in keys]).to(images)
        scale = 1 / (1 + self.zoom * offsets[:, :1])
        return resample(images, scale.expand(-1, 2), 2 * self.shift * offsets[:, 1:])  # an image reaches from -1 to 1

    @staticmethod
    def _offsets(seed: int, key: str, view: int) -> Tensor:
        """Return scale, x and y offset, each from -1 to 1."""
        return torch.rand(3, generator=torch.Generator().manual_seed(derive_seed("view", seed, key, view))) * 2 - 1
