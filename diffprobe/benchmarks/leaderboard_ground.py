"""The boards of the leaderboard, and what their dictionaries are trained and certified on."""

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.benchmarks.timed_dictionaries import PAIRED, TargetRows, TrainingSettings
from diffprobe.core.errors import ConfigError
from diffprobe.evaluation.certificates.dictionary import SCENE_FACTORS
from diffprobe.evaluation.certificates.dictionary_samples import (
    DictionarySamples,
    Reading,
    read_scenes,
    scene_samples,
    scenes_of,
    shard_samples,
)
from diffprobe.evaluation.certificates.settings import WorldSettings


@dataclass(frozen=True, kw_only=True)
class Board:
    """What is measured."""

    name: str
    """Name of the board."""
    backbone: str
    """Folder or name of the backbone."""
    cell: str
    """Cell of the features; with pool none each place of the map is a row."""
    data: str = ""
    """A shard set whose attributes are the factors; empty for rendered scenes."""
    target_tap: str = "up_blocks.2"
    """Tap that transcoders reconstruct, with the map of the cell's tap."""
    factors: tuple[str, ...] = SCENE_FACTORS
    """Factors that need a latent."""
    pointing: tuple[str, ...] = ("hat", "tool", "object", "texture", "colour")
    """Of scenes: factors with a part."""
    n_fit: int = 1000
    """Images on whose rows dictionaries are trained; of scenes with seed 0, of a shard set the first of train."""
    n_train: int = 600
    """Images of train on which latents are chosen; of scenes with seed 1."""
    n_test: int = 400
    """Images of test on which they are scored."""
    resolution: int = 64
    """Side of the images in pixels."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of initial weights and order of batches."""
    n_permutations: int = 999
    """Permutations of each null distribution."""
    n_resamples: int = 1000
    """Resamples of intervals."""
    most_values: int = 10
    """Of a shard set: values of a factor, the most frequent ones."""
    training: TrainingSettings = field(default_factory=TrainingSettings)
    """Settings that all trained dictionaries share."""

    @property
    def target_cell(self) -> str:
        """The cell that transcoders reconstruct: the target tap at the timestep, condition and pooling of the cell."""
        return self.target_tap + self.cell[len(self.cell.partition("@")[0]) :]


BOARDS = {
    "scenes": Board(name="scenes", backbone="scenes-sd", cell="up_blocks.1@t200:empty:none"),
    "emoji": Board(
        name="emoji", backbone="emoji-sd", cell="up_blocks.1@t200:empty:none", data="emoji",
        factors=("style", "skin_tone", "label"), pointing=(), n_fit=1500, n_train=1500, n_test=800,
    ),
}  # fmt: skip
"""Name -> board."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """What transcoders reconstruct."""

    rows: TargetRows
    """Its features of the training images."""
    test: NDArray[np.float32]
    """Its features of the test images, as in `DictionarySamples`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """The samples of a board, and the rows on which its dictionaries are trained."""

    samples: DictionarySamples
    rows: Tensor
    """Features of the training images, one row per place, (rows, d)."""
    target: Target | None = None
    """Of the same images; None if it was not read."""

    def target_of(self, variant: str) -> Target | None:
        """Return what a variant reconstructs, None for the features that it encodes."""
        return self.target if variant == PAIRED else None


def read_ground(board: Board, *, random_weights: bool = False, with_target: bool = False) -> Ground:
    """Read the features of a board.

    Raises: ConfigError for a target tap with maps of another size; the errors of `scene_samples` and `shard_samples`.
    """
    samples, fit = _read(board, board.cell, random_weights)
    if not with_target:
        return Ground(samples=samples, rows=fit)
    of_target, target = _read(board, board.target_cell, random_weights)
    if len(target) != len(fit):
        raise ConfigError(
            f"board '{board.name}': {len(target):,} rows of '{of_target.cell}' do not pair with {len(fit):,} of "
            f"'{samples.cell}'.",
            fix="a target_tap whose maps have the size of the cell's",
        )
    rows = TargetRows(board.target_tap, target)
    return Ground(samples=samples, rows=fit, target=Target(rows=rows, test=of_target.test))


def _read(board: Board, cell: str, random_weights: bool) -> tuple[DictionarySamples, Tensor]:
    """Return the samples of a cell, and its rows of the training images."""
    reading = Reading(backbone=board.backbone, cell=cell, resolution=board.resolution, random_weights=random_weights)
    if board.data:
        samples, fit = shard_samples(
            board.data, reading, n_train=board.n_train, n_test=board.n_test, factors=board.factors,
            most_values=board.most_values, n_fit=board.n_fit,
        )  # fmt: skip
    else:
        spec, world = WorldSettings().load_world(), WorldSettings().world
        samples = scene_samples(
            spec, reading, world=world, seed=1, n_train=board.n_train, n_test=board.n_test, factors=board.factors,
            pointing=board.pointing, tolerance=0,
        )  # fmt: skip
        _, (fit,) = read_scenes(spec, reading, [scenes_of(spec, "train", board.n_fit, world=world, seed=0)])
    if fit is None:
        raise ConfigError(f"board '{board.name}': n_fit={board.n_fit} images to train on; at least 1 is needed.")
    return samples, torch.from_numpy(as_rows(fit))


def as_rows(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features with a row per place, (samples x places, d); pooled features as they are."""
    if features.ndim == 2:
        return features
    return np.ascontiguousarray(features.transpose(0, 2, 3, 1).reshape(-1, features.shape[1]))
