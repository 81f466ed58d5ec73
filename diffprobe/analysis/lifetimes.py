"""Lifetimes of latents over timesteps: where each is born, where it is strongest, and where it dies.

Sampling runs from large timesteps (noise) to small ones, and so does the life of a latent. By the rule of this module

- the *strength* of a latent at a timestep is its mean activation over all rows of the timestep, 0 where it is inactive;
- its *peak* is the timestep of the largest strength (of several, the noisiest);
- it is *alive* at a timestep if its strength is at least `share` of that at the peak;
- *birth* and *death* are the noisiest and the least noisy timestep of the unbroken run of such timesteps at the peak.

A latent that is active on fewer than `min_active` rows has no lifetime.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Lifetimes:
    """Activity of latents by timestep, and what follows from it."""

    timesteps: tuple[int, ...]
    """Timesteps in ascending order."""
    n_active: Int[NDArray[np.int64], " latents"]
    """Rows of all timesteps on which a latent is active."""
    frequency: Float[NDArray[np.float64], "latents timesteps"]
    """Share of the rows of a timestep on which a latent is active."""
    strength: Float[NDArray[np.float64], "latents timesteps"]
    """Mean activation over all rows of a timestep."""
    alive: Bool[NDArray[np.bool_], "latents timesteps"]
    """Whether a timestep is between birth and death, both included; False for a latent without a lifetime."""
    peak: Int[NDArray[np.int64], " latents"]
    """Timestep of the largest strength; -1 without a lifetime."""

    @property
    def has_one(self) -> Bool[NDArray[np.bool_], " latents"]:
        """Whether a latent has a lifetime."""
        found: NDArray[np.bool_] = self.peak >= 0
        return found

    @property
    def birth(self) -> Int[NDArray[np.int64], " latents"]:
        """The noisiest timestep of the life; -1 without a lifetime."""
        last = len(self.timesteps) - 1 - np.argmax(self.alive[:, ::-1], axis=1)
        return np.where(self.has_one, np.array(self.timesteps)[last], -1)

    @property
    def death(self) -> Int[NDArray[np.int64], " latents"]:
        """The least noisy timestep of the life; -1 without a lifetime."""
        return np.where(self.has_one, np.array(self.timesteps)[np.argmax(self.alive, axis=1)], -1)

    @property
    def n_alive(self) -> Int[NDArray[np.int64], " latents"]:
        """Number of timesteps of the life; 0 without a lifetime."""
        return self.alive.sum(1).astype(np.int64)

    @property
    def order(self) -> Int[NDArray[np.int64], " latents_with_a_lifetime"]:
        """The latents with a lifetime by peak, then birth, then death, from noise to image; ties by number."""
        chosen = np.flatnonzero(self.has_one)
        keys = (chosen, -self.death[chosen], -self.birth[chosen], -self.peak[chosen])
        found: NDArray[np.int64] = chosen[np.lexsort(keys)]
        return found


def find_lifetimes(
    timesteps: Sequence[int],
    n_rows: Int[NDArray[np.int64], " timesteps"],
    active: Int[NDArray[np.int64], "latents timesteps"],
    total: Float[NDArray[np.float64], "latents timesteps"],
    *,
    share: float = 0.5,
    min_active: int = 10,
) -> Lifetimes:
    """Return the lifetimes of latents from their activity.

    Args:
        timesteps: timesteps in ascending order, at least two.
        n_rows: rows of each timestep.
        active: rows of each timestep on which each latent is active.
        total: sum of its activations over them.
        share: share of the strength at the peak from which a latent counts as alive, above 0 and at most 1.
        min_active: rows on which a latent has to be active to have a lifetime, at least 1.

    Raises: ConfigError for fewer than two timesteps, timesteps that do not rise, one without rows, or settings out of
        range.

    >>> found = find_lifetimes([10, 200, 700], np.array([9, 9, 9]), np.array([[9, 9, 0]]), np.array([[9.0, 3.0, 0.0]]))
    >>> int(found.birth[0]), int(found.peak[0]), int(found.death[0])
    (10, 10, 10)
    """
    if len(timesteps) < 2 or any(b <= a for a, b in zip(timesteps, timesteps[1:], strict=False)):
        raise ConfigError(
            f"lifetimes need at least two timesteps in ascending order; given: {', '.join(map(str, timesteps))}."
        )
    if not 0 < share <= 1 or min_active < 1:
        raise ConfigError(f"share = {share}, min_active = {min_active}; allowed: 0 < share <= 1, min_active >= 1.")
    if not (n_rows > 0).all():
        raise ConfigError(f"timestep {timesteps[int(np.argmin(n_rows))]} has no rows.")
    strength, n_active = total / n_rows, active.sum(1)
    last = len(timesteps) - 1
    peak = last - np.argmax(strength[:, ::-1], axis=1)  # the noisiest of several
    highest = np.take_along_axis(strength, peak[:, None], 1)
    enough = (n_active >= min_active) & (highest[:, 0] > 0)
    strong = (strength >= share * highest) & enough[:, None]
    # a timestep belongs to the life if all timesteps between it and the peak are strong
    weak = np.cumsum(~strong, axis=1)
    at_peak = np.take_along_axis(weak, peak[:, None], 1)
    alive = strong & (weak == at_peak)
    return Lifetimes(
        timesteps=tuple(timesteps), n_active=n_active, frequency=active / n_rows, strength=strength, alive=alive,
        peak=np.where(enough, np.array(timesteps)[peak], -1),
    )  # fmt: skip


def peak_agreement(one: Lifetimes, other: Lifetimes) -> tuple[float, float, int]:
    """Return the share of latents with the same peak in both, that expected by chance, and the number of latents.

    Compared are the latents with a lifetime in both. By chance: of independent draws from the peaks of each. NaN
    without a latent.

    Raises: ConfigError for other timesteps or another number of latents.
    """
    if one.timesteps != other.timesteps or len(one.peak) != len(other.peak):
        raise ConfigError("lifetimes of other timesteps or latents cannot be compared.")
    both = one.has_one & other.has_one
    n = int(both.sum())
    if n == 0:
        return float("nan"), float("nan"), 0
    shares = [np.array([(of.peak[both] == t).mean() for t in one.timesteps]) for of in (one, other)]
    return float((one.peak[both] == other.peak[both]).mean()), float(shares[0] @ shares[1]), n
