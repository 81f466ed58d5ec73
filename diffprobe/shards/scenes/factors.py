"""What a scene is: the values of its factors and its random offsets, as functions of (seed, index) alone.

The random numbers are counters that are hashed: the number of a name (a factor, an offset) at an index is
``mix(mix(key) xor mix(index * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15))``, where ``key`` is the first 8 bytes of
sha256("scenes|version|seed|name") and ``mix`` the finaliser of splitmix64. All arithmetic is on 64-bit integers. So
each factor has random numbers of its own, which do not change when another factor does.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError
from diffprobe.shards.scenes.spec import FACTORS, PLAIN, STRIPED, Range, WorldSpec

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LARGEST_INDEX = 2**48
"""Indices are below this."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
_MULTIPLIERS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scenes:
    """Some scenes of one seed and world, before they are drawn.

    Attributes:
        seed: of the random numbers.
        world: number of the world.
        indices: of the scenes, int64 (n,).
        factors: factor -> code of each scene's value, int64 (n,).
        offsets: name -> random number that no factor explains, int64 (n,).
    """

    seed: int
    world: int
    indices: Ints
    factors: Mapping[str, Ints]
    offsets: Mapping[str, Ints]

    def __len__(self) -> int:
        return len(self.indices)

    def select(self, chosen: NDArray[np.bool_] | Ints) -> "Scenes":
        """Return some of the scenes, by mask or position."""
        return replace(
            self,
            indices=self.indices[chosen],
            factors={name: codes[chosen] for name, codes in self.factors.items()},
            offsets={name: numbers[chosen] for name, numbers in self.offsets.items()},
        )


def sample(spec: WorldSpec, seed: int, indices: Sequence[int] | Ints, *, world: str | None = None) -> Scenes:
    """Draw the factors and offsets of scenes.

    Args:
        spec: of the world.
        seed: from 0 to 2^63 - 1.
        indices: of the scenes, from 0 to 2^48 - 1.
        world: name of the world whose rates are used; the first one of the file if None. The worlds share all random
            numbers, so that a scene of two worlds differs in its texture at most, and in the colour of the interaction.

    Raises: ConfigError for a seed or index out of range; UnknownName for an unknown world.
    """
    number = 0 if world is None else spec.world(world)
    if not 0 <= seed < 2**63:
        raise ConfigError(f"seed {seed} is out of range; allowed: 0 to 2^63 - 1.")
    places = np.asarray(indices, dtype=np.int64).reshape(-1)
    if len(places) and not (0 <= places.min() and places.max() < LARGEST_INDEX):
        raise ConfigError(f"an index is out of range: {places.min()} to {places.max()}.", "allowed: 0 to 2^48 - 1")

    def uniform(name: str) -> Floats:
        return fractions(spec, seed, name, places)

    def evenly(name: str, n: int) -> Ints:
        return (uniform(name) * n).astype(np.int64)

    def between(name: str, span: Range) -> Ints:
        return span[0] + evenly(name, span[1] - span[0] + 1)

    role = evenly("role", len(spec.roles))
    texture = (uniform("texture") < rates(spec, number)[role]).astype(np.int64)
    colour = _choose(uniform("colour"), colour_table(spec, number)[role, texture])
    layout, jitter, tint = spec.layout, (-spec.colour_jitter, spec.colour_jitter), spec.tint
    periods = np.array([max(1, background.period) for background in spec.backgrounds], dtype=np.int64)
    background = _choose(uniform("background"), background_table(spec)[role])
    factors = {
        "role": role,
        "texture": texture,
        "colour": colour,
        **{name: evenly(name, len(spec.values[name])) for name in ("build", "size", "pose", "place")},
        "background": background,
        "object": _choose(uniform("object"), np.tile(np.array(spec.object_probabilities), (len(places), 1))),
        "side": evenly("side", 2),
    }
    offsets = {
        "figure_x": between("figure_x", layout.figure_x),
        "figure_y": between("figure_y", layout.figure_y),
        "object_x": between("object_x", layout.object_x),
        "object_y": between("object_y", layout.object_y),
        "stripe_phase": evenly("stripe_phase", spec.stripe_period),
        **{f"cloth_{channel}": between(f"cloth_{channel}", jitter) for channel in ("red", "green", "blue")},
        **{f"tint_{channel}": between(f"tint_{channel}", tint) for channel in ("red", "green", "blue")},
        **{f"background_{axis}": evenly(f"background_{axis}", int(np.lcm.reduce(periods))) for axis in ("x", "y")},
    }
    return Scenes(seed=seed, world=number, indices=places, factors=factors, offsets=offsets)


def counterfactual_scenes(scenes: Scenes, factor: str, codes: int | Ints) -> Scenes:
    """Return the scenes with other values of one factor; the other factors and all random numbers are kept."""
    assert factor in FACTORS
    changed = np.broadcast_to(np.asarray(codes, dtype=np.int64), scenes.indices.shape).copy()
    return replace(scenes, factors={**scenes.factors, factor: changed})


def fractions(spec: WorldSpec, seed: int, name: str, indices: Ints) -> Floats:
    """Return the random number of a name at each index, float64 (n,) in [0, 1), a multiple of 2^-53."""
    text = f"scenes|{spec.version}|{seed}|{name}"
    key = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], dtype=">u8").astype(np.uint64)
    with np.errstate(over="ignore"):
        bits = _mix(_mix(key) ^ _mix(indices.astype(np.uint64) * _GOLDEN + _GOLDEN))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash 64-bit integers, one to one: the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    bits = (bits ^ (bits >> _SHIFTS[0])) * _MULTIPLIERS[0]
    bits = (bits ^ (bits >> _SHIFTS[1])) * _MULTIPLIERS[1]
    return bits ^ (bits >> _SHIFTS[2])


def rates(spec: WorldSpec, world: int) -> Floats:
    """Return P(striped | role) in a world, float64 (roles,)."""
    return np.array([role.striped[world] for role in spec.roles])


def colour_table(spec: WorldSpec, world: int) -> Floats:
    """Return P(colour | role, texture) in a world, float64 (roles, 2, colours)."""
    n_colours = len(spec.colours)
    table = np.full((len(spec.roles), 2, n_colours), 1 / n_colours)
    first, second = spec.interaction.colours
    striped = rates(spec, world)
    for code, sign in enumerate(spec.interaction.sign):
        for texture, change in ((STRIPED, 1 - striped[code]), (PLAIN, -striped[code])):
            table[code, texture, first] += sign * spec.interaction.shift * change
            table[code, texture, second] -= sign * spec.interaction.shift * change
    return table


def background_table(spec: WorldSpec) -> Floats:
    """Return P(background | role), the same in all worlds, float64 (roles, backgrounds)."""
    names = spec.values["background"]
    table = np.full((len(spec.roles), len(names)), 1 / len(names))
    for code, role in enumerate(spec.roles):
        if role.background is not None:
            table[code] = (1 - spec.preference) / max(1, len(names) - 1)
            table[code, names.index(role.background)] = spec.preference
    return table


def joint_table(spec: WorldSpec, world: int, *, train: bool = False) -> Floats:
    """Return P(role, texture, colour) in a world, float64 (roles, 2, colours).

    Args:
        train: without the held-out combinations, as in the splits train, val and test.
    """
    striped = rates(spec, world)
    given_role = np.stack([1 - striped, striped], axis=1)[..., None] * colour_table(spec, world)
    table = given_role / len(spec.roles)
    if train:
        for combination in spec.splits.combinations:
            table[combination] = 0
        table = table / table.sum()
    return table


def _choose(uniform: Floats, probabilities: Floats) -> Ints:
    """Return the value of each scene: the number of cumulated probabilities that its random number reaches."""
    ends = np.cumsum(probabilities, axis=1)[:, :-1]
    return (uniform[:, None] >= ends).sum(axis=1).astype(np.int64)
