"""`features.massive`: what is done with massive channels, which are found on training images or taken from a store."""

from dataclasses import dataclass
from typing import Literal

from diffprobe.config.validators import at_least
from diffprobe.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MassiveConfig:
    """Channels far above all others: found by a rule on training images before extraction, then set to 0 or clipped."""

    treatment: Literal["keep", "drop", "clip"] = "keep"
    """keep: features as they are; drop: set massive channels to 0; clip: limit them to `ratio` times the median
    channel. Maps are changed before pooling. The channels are listed in the manifest of the store."""
    ratio: float = 20.0
    """A channel of a cell is massive if its mean magnitude is at least this many times the median channel's."""
    images: int = 64
    """Number of images of the training split, the first ones in shard order, on which the channels are found."""

    channels_of: str | None = None
    """Folder of a feature store whose channels and limits are treated; None finds them. For a data set on which probes
    are read that were trained on that store."""

    def __post_init__(self) -> None:
        at_least(1, images=self.images)
        if not self.ratio > 1:
            raise ConfigError(f"ratio={self.ratio:g} is out of range: more than 1.")
        idle = [name for name in ("ratio", "images") if getattr(self, name) != getattr(MassiveConfig, name)]
        if idle and self.channels_of is not None:
            raise ConfigError(
                f"{', '.join(idle)} of massive channels without effect: they are those of channels_of.",
                fix="remove it, or channels_of",
            )
        idle += ["channels_of"] if self.channels_of is not None else []
        if idle and not self.active:
            raise ConfigError(
                f"{', '.join(idle)} of massive channels without effect: treatment=keep looks for none.",
                fix="features.massive.treatment=drop (or clip), or remove it",
            )

    @property
    def active(self) -> bool:
        """Whether massive channels are changed."""
        return self.treatment != "keep"

    @property
    def finds(self) -> bool:
        """Whether massive channels are looked for on training images."""
        return self.active and self.channels_of is None
