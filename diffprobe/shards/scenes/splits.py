"""The split of each scene: train, val and test by its index, and two splits of what train never has."""

import itertools

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, unknown
from diffprobe.shards.scenes.factors import Ints, Scenes, fractions, sample
from diffprobe.shards.scenes.spec import WorldSpec

HELD_OUT_VALUES, HELD_OUT_COMBINATIONS = "held_out_values", "held_out_combinations"
SPLITS = ("train", "val", "test", HELD_OUT_COMBINATIONS, HELD_OUT_VALUES)
"""Names of the splits."""
_AT_ONCE = 4096
_MOST_EMPTY = 200
"""Blocks without a scene of a split after which the search for one ends."""


def splits_of(spec: WorldSpec, scenes: Scenes) -> NDArray[np.str_]:
    """Return the split of each scene.

    A scene with a held-out value is in `held_out_values`; of the others, one with a held-out combination of role,
    texture and colour is in `held_out_combinations`; of the rest a random number of the index decides, so that train,
    val and test have one distribution.
    """
    place = fractions(spec, scenes.seed, "split", scenes.indices)
    names = np.where(
        place < spec.splits.test, "test", np.where(place < spec.splits.test + spec.splits.val, "val", "train")
    )
    found = names.astype(f"<U{max(map(len, SPLITS))}")
    combined = np.zeros(len(scenes), dtype=np.bool_)
    for role, texture, colour in spec.splits.combinations:
        factors = scenes.factors
        combined |= (factors["role"] == role) & (factors["texture"] == texture) & (factors["colour"] == colour)
    found[combined] = HELD_OUT_COMBINATIONS
    for factor, values in spec.splits.values.items():
        found[np.isin(scenes.factors[factor], values)] = HELD_OUT_VALUES
    return found


def split_indices(spec: WorldSpec, seed: int, split: str, n: int, *, start: int = 0, world: str | None = None) -> Ints:
    """Return the first `n` indices of a split from `start`, int64 (n,), for training on scenes drawn on demand.

    Raises: UnknownName for an unknown split; ConfigError if `n` is below 1 or the world has no scene of the split.
    """
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if n < 1:
        raise ConfigError(f"n={n} is out of range; allowed: from 1.")
    found: list[Ints] = []
    n_found = n_empty = 0
    for first in itertools.count(start, _AT_ONCE):
        scenes = sample(spec, seed, np.arange(first, first + _AT_ONCE), world=world)
        chosen = scenes.indices[splits_of(spec, scenes) == split]
        found.append(chosen)
        n_found += len(chosen)
        n_empty = 0 if len(chosen) else n_empty + 1
        if n_found >= n:
            break
        if n_empty == _MOST_EMPTY:
            raise ConfigError(f"no scene of split '{split}' among {n_empty * _AT_ONCE:,} indices.")
    return np.concatenate(found)[:n]
