"""Counterfactual pairs: two scenes that differ in one factor, with the other factors and all random numbers kept."""

from dataclasses import dataclass

import numpy as np

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.factors import Ints, Scenes, counterfactual_scenes, fractions, sample
from diffprobe.shards.scenes.spec import WorldSpec
from diffprobe.shards.scenes.splits import splits_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs of scenes: row i of `base` and row i of `changed` differ in `factor` alone."""

    factor: str
    base: Scenes
    changed: Scenes


def counterfactual(
    spec: WorldSpec, seed: int, index: int, factor: str, value: str, *, world: str | None = None
) -> tuple[Scenes, Scenes]:
    """Return a scene and the same scene with another value of one factor, each as one row.

    The value is set whatever the planted rates are: other factors that depend on it (texture, colour and background on
    the role) keep their values. If the scene has that value already, both are equal.

    Raises: UnknownName for an unknown factor or value; ConfigError for a seed or index out of range.
    """
    code = spec.code(factor, value)
    scenes = sample(spec, seed, [index], world=world)
    return scenes, counterfactual_scenes(scenes, factor, code)


def pairs_of(spec: WorldSpec, scenes: Scenes, factor: str) -> Pairs:
    """Pair each scene with one of another value of a factor, each other value with equal probability.

    Pairs of which one scene is in another split than the other are left out: those with a held-out value or combination
    on one side.

    Raises: UnknownName for an unknown factor; ConfigError for a factor with one value.
    """
    n_values = len(spec.names(factor))
    if n_values == 1:
        raise ConfigError(f"factor '{factor}' has one value, so it cannot be changed.")
    steps = 1 + (fractions(spec, scenes.seed, f"pair: {factor}", scenes.indices) * (n_values - 1)).astype(np.int64)
    codes: Ints = (scenes.factors[factor] + steps) % n_values
    changed = counterfactual_scenes(scenes, factor, codes)
    kept = np.flatnonzero(splits_of(spec, scenes) == splits_of(spec, changed))
    return Pairs(factor=factor, base=scenes.select(kept), changed=changed.select(kept))
