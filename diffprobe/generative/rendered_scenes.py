"""Rendered scenes as training data of the attribute reader: drawn when a batch needs them, with uniform attributes.

Texture, colour and background are drawn anew, independent of the role and of each other. A reader trained at planted
rates would learn them and guess the texture of an unclear image from its role.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError
from diffprobe.generative.image_table import RowIndexDataset, RowIndexLoader, epoch_getter
from diffprobe.generative.run_settings import GenerativeData
from diffprobe.shards.scenes.factors import Ints, Scenes, counterfactual_scenes, fractions, sample
from diffprobe.shards.scenes.spec import CANVAS, RESOLUTIONS, WorldSpec
from diffprobe.shards.scenes.splits import split_indices
from diffprobe.shards.scenes.world import SHIPPED, load_world

DEPENDENT = ("texture", "colour", "background")
"""Factors that depend on the role in the world, and are drawn uniformly here."""


@dataclass(frozen=True, kw_only=True)
class RenderedScenesConfig:
    """Which scenes are drawn; nothing is read from disk but the file of the world."""

    world: str | None = None
    """File of the world; None for the one that ships with diffprobe."""
    resolution: int = CANVAS
    """Side length of the images in pixels: 64 or 32."""
    seed: int = 0
    """Seed of the scenes."""
    n_train: int = 60_000
    """Scenes per epoch, the first ones of the split train."""
    n_val: int = 2_000
    """Scenes of the split val on which accuracies are measured."""
    batch_size: int = 128
    """Scenes per step."""

    def __post_init__(self) -> None:
        at_least(1, batch_size=self.batch_size, n_val=self.n_val)
        if self.resolution not in RESOLUTIONS:
            allowed = ", ".join(map(str, RESOLUTIONS))
            raise ConfigError(f"data.resolution={self.resolution} is not offered; allowed: {allowed}.")
        if self.n_train < self.batch_size:
            raise ConfigError(
                f"data.batch_size={self.batch_size} is more than data.n_train={self.n_train}.",
                "training uses full batches only",
            )

    def spec(self) -> WorldSpec:
        """Read the file of the world. Raises: ConfigError."""
        return load_world(Path(self.world) if self.world else SHIPPED)


def uniform_scenes(spec: WorldSpec, seed: int, indices: Ints) -> Scenes:
    """Return scenes whose factors are all independent: those of `DEPENDENT` are drawn uniformly, the rest is kept."""
    scenes = sample(spec, seed, indices)
    for name in DEPENDENT:
        codes = (fractions(spec, seed, f"uniform: {name}", scenes.indices) * len(spec.names(name))).astype(np.int64)
        scenes = counterfactual_scenes(scenes, name, codes)
    return scenes


class RenderedScenes(GenerativeData):
    """Indices of training and validation scenes; batches are rows of these. Raises: the errors of `split_indices`."""

    def __init__(self, config: RenderedScenesConfig, *, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        spec = config.spec()
        self.train: Ints = split_indices(spec, config.seed, "train", config.n_train)
        self.val: Ints = split_indices(spec, config.seed, "val", config.n_val)

    def train_dataloader(self) -> RowIndexLoader:
        """Return shuffled batches of rows; an incomplete last batch is dropped."""
        return RowIndexLoader(len(self.train), self.config.batch_size, seed=self.seed, epoch=epoch_getter(self))

    def val_dataloader(self) -> DataLoader[Tensor]:
        """Return all validation rows in order."""
        return DataLoader(RowIndexDataset(len(self.val)), batch_size=self.config.batch_size)
