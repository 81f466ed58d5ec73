"""Views of an image: the same drawing a little moved and scaled. Owns how far; the training of denoisers uses them.

A denoiser that has seen a drawing in one place only learns its pixels by heart. No view is mirrored: a mirrored "left
arrow" would make its caption wrong.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.core.shapes import Images


@dataclass(frozen=True, kw_only=True)
class Views:
    """How many views of an image there are, and how they differ."""

    n: int = 6
    """Views of each image; the first one is the image itself."""
    own: float = 0.5
    """Share of training samples that see the image itself."""
    shift: float = 0.05
    """Largest shift, as a share of the side."""
    zoom: float = 0.1
    """Largest change of size, as a share of it."""

    def __post_init__(self) -> None:
        if self.n < 1 or not 0 <= self.own <= 1 or not 0 <= self.shift < 1 or not 0 <= self.zoom < 1:
            raise ConfigError(f"views: n={self.n} own={self.own} shift={self.shift} zoom={self.zoom} are no views.")

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """Draw the view of each sample of a batch, `[batch]` numbers from 0 to n - 1."""
        own, other = torch.rand(2, batch, generator=generator)
        return torch.where((own < self.own) | (self.n == 1), 0, 1 + (other * (self.n - 1)).long())

    def make(self, images: Images, view: int, keys: list[str], seed: int) -> Images:
        """Return one view of each image, fixed by (seed, key, view); what comes in from outside repeats the border."""
        if view == 0:
            return images
        draws = torch.stack([self._draws(seed, key, view) for key in keys]).to(images)
        scale = 1 / (1 + self.zoom * draws[:, 0])
        matrices = torch.zeros(len(keys), 2, 3, dtype=images.dtype, device=images.device)
        matrices[:, 0, 0] = matrices[:, 1, 1] = scale
        matrices[:, :, 2] = 2 * self.shift * draws[:, 1:]  # the grid runs from -1 to 1
        grid = affine_grid(matrices, list(images.shape), align_corners=False)
        moved = grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
        return moved.clamp(0, 1)

    @staticmethod
    def _draws(seed: int, key: str, view: int) -> Tensor:
        return torch.rand(3, generator=torch.Generator().manual_seed(derive_seed("view", seed, key, view))) * 2 - 1
