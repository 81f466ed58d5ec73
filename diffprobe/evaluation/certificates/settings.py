"""Settings that every kind of certificate has: the world, the samples drawn from it, and how intervals are drawn."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError

if TYPE_CHECKING:
    from diffprobe.shards.scenes.spec import WorldSpec


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Keys that every kind has."""

    world: str = "planted"
    """World of `scenes` whose truth is used."""
    spec: str | None = None
    """File of another world than the shipped one; see `diffprobe data build scenes --spec`."""
    seed: int = 1
    """Seed of the scenes, of resamples and of null distributions. Take another one than that of the training data."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    alpha: float = 0.05
    """Largest p of a null distribution that counts as above chance."""
    n_resamples: int = 1000
    """Resamples of bootstrap intervals."""

    def __post_init__(self) -> None:
        at_least(1, n_resamples=self.n_resamples)
        at_least(0, seed=self.seed)
        for name in ("level", "alpha"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: between 0 and 1.")

    def load_world(self) -> "WorldSpec":
        """Read the world, and check the name of the one that is used. Raises: ConfigError, UnknownName."""
        from diffprobe.shards.scenes.world import SHIPPED, load_world

        loaded = load_world(SHIPPED if self.spec is None else Path(self.spec))
        loaded.world(self.world)
        return loaded


def in_unit_range(**values: float) -> None:
    """Raise ConfigError for a value outside 0 to 1, by the name of its key.

    >>> in_unit_range(least_auroc=0.9)
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ConfigError(f"{name}={value} is out of range: 0 to 1.")
