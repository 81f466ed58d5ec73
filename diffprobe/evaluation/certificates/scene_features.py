"""Features of rendered scenes in one cell of a backbone, with one noise for both members of a counterfactual pair."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

    from diffprobe.backbones.cell import Cell
    from diffprobe.shards.scenes.factors import Scenes
    from diffprobe.shards.scenes.spec import WorldSpec

_AT_ONCE = 64
"""Scenes that are drawn and read at once."""
_CONDITIONS = ("empty", "caption")


def keeps_places(cell: "Cell") -> bool:
    """Return whether a cell has a vector per place of the map rather than one per sample."""
    return cell.pool == "none" or cell.pool.startswith("tokens")


class SceneReader:
    """Draws scenes and reads them in one cell.

    Args:
        spec: of the world.
        backbone: folder or name of the backbone, as `DiffusionFeatures.from_pretrained` takes it.
        cell: name of the cell.
        resolution: side of the images, 64 or 32.
        noise_seed: seed of the noise.
        random_weights: whether the denoiser has random weights, as a control.
        part: "vae" reads the latents of its VAE alone (the tap `latents`).

    Raises: ConfigError for a text that is not a cell, or a condition that scenes do not have; UnknownTap, BadTimestep,
        WeightsMissing.
    """

    def __init__(
        self, spec: "WorldSpec", backbone: str, cell: str, *, resolution: int, noise_seed: int,
        random_weights: bool = False, part: str = "denoiser",
    ) -> None:  # fmt: skip
        from diffprobe.backbones.extractor import DiffusionFeatures
        from diffprobe.backbones.library_logging import quiet_libraries
        from diffprobe.report.query import parse_cell

        self.spec, self.resolution = spec, resolution
        self.cell = parse_cell(cell)
        if self.cell.condition not in _CONDITIONS:
            raise ConfigError(
                f"cell '{cell}' has the condition '{self.cell.condition}'.", f"allowed: {', '.join(_CONDITIONS)}"
            )
        with quiet_libraries():
            self._extractor = DiffusionFeatures.from_pretrained(
                backbone, taps=[self.cell.tap], timesteps=[self.cell.timestep], condition=self.cell.condition,
                pool="none" if self.has_places else self.cell.pool, seed=noise_seed, resolution=resolution, part=part,
                random_weights=random_weights,
            )  # fmt: skip

    def read(self, scenes: "Scenes") -> NDArray[np.float32]:
        """Return the features of scenes, shape (scenes, d), or the map, (scenes, channels, height, width), if the cell
        has places: tokensN as none.

        The noise depends on seed and index of a scene, so that both members of a pair have the same. A caption is that
        of the scene.
        """
        from diffprobe.shards.scenes.captions import captions_of

        texts = [own[0] for own in captions_of(self.spec, scenes)] if self._has_captions else None
        found, start = [], 0
        for images, keys in rendered(self.spec, scenes, self.resolution):
            captions = None if texts is None else texts[start : start + len(keys)]
            features = self._extractor(images, keys=keys, captions=captions)
            found.append(next(iter(features.values())).cpu().numpy())
            start += len(keys)
        return np.concatenate(found)

    @property
    def has_places(self) -> bool:
        """Whether the cell has a vector per place of the map rather than one per sample."""
        return keeps_places(self.cell)

    @property
    def _has_captions(self) -> bool:
        return self.cell.condition == "caption"


def rendered(spec: "WorldSpec", scenes: "Scenes", resolution: int) -> "Iterator[tuple[Tensor, list[str]]]":
    """Yield batches of rendered images, float32 (batch, 3, r, r) in [0, 1], with the key of each, by which its noise is
    drawn."""
    import torch

    from diffprobe.shards.scenes.render import render

    for start in range(0, len(scenes), _AT_ONCE):
        part = scenes.select(np.arange(start, min(start + _AT_ONCE, len(scenes))))
        images = torch.from_numpy(render(spec, part, resolution=resolution).images)
        keys = [f"{part.seed}-{index:08d}" for index in part.indices.tolist()]
        yield images.permute(0, 3, 1, 2).float() / 255, keys


def brightness(spec: "WorldSpec", scenes: "Scenes", *, resolution: int) -> NDArray[np.float64]:
    """Return the mean of all pixels and channels of each image, 0..1, shape (scenes,)."""
    from diffprobe.shards.scenes.render import render

    parts: list[NDArray[np.float64]] = []
    for start in range(0, len(scenes), _AT_ONCE):
        part = scenes.select(np.arange(start, min(start + _AT_ONCE, len(scenes))))
        parts.append(render(spec, part, resolution=resolution).images.mean(axis=(1, 2, 3)) / 255)
    return np.concatenate(parts)
