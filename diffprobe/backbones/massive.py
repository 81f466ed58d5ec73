"""Massive channels: the few channels of a transformer whose values are far above all others, at all places.

They hold no local information but make up most of the norm of a feature, so cosines and distances see little else
(Sun et al. 2024, 2402.17762; for diffusion transformers DiTF, Gan et al. 2025, 2505.18584, which sets the channels 154
and 1446 of FLUX to 0). The channels are found from data by a rule here.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError

Treatment = Literal["keep", "drop", "clip"]


@dataclass(frozen=True)
class MassiveChannels:
    """The massive channels of one cell.

    Attributes:
        channels: channel -> mean magnitude as a multiple of the median channel's.
        limit: magnitude at which they are clipped: the ratio of the rule times the median.
    """

    channels: dict[int, float]
    limit: float

    def bound(self, n_channels: int, treatment: Treatment) -> Float[Tensor, " channels"]:
        """Return the largest magnitude of each channel: 0 or `limit` of a massive one, infinity of all others.

        >>> MassiveChannels({1: 25.0}, 40.0).bound(3, "clip").tolist()
        [inf, 40.0, inf]
        """
        bound = torch.full((n_channels,), torch.inf)
        if treatment != "keep":
            bound[list(self.channels)] = 0.0 if treatment == "drop" else self.limit
        return bound

    def to_json(self) -> dict[str, Any]:
        """Return the channels and the limit as JSON types, for a manifest."""
        return {"channels": {str(channel): value for channel, value in self.channels.items()}, "limit": self.limit}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "MassiveChannels":
        """Read what `to_json` returned. Raises: KeyError, TypeError or ValueError for anything else."""
        return cls({int(channel): float(of) for channel, of in value["channels"].items()}, float(value["limit"]))


def find_massive(size: Float[Tensor, " channels"], *, ratio: float) -> MassiveChannels:
    """Apply the rule to the mean magnitudes of channels.

    A channel is massive if its magnitude is at least `ratio` times the median channel's; none is where that is 0.

    Raises: ConfigError for a ratio of at most 1.

    >>> import torch
    >>> find_massive(torch.tensor([1.0, 50.0, 2.0]), ratio=20)
    MassiveChannels(channels={1: 25.0}, limit=40.0)
    """
    if not ratio > 1:
        raise ConfigError(f"massive channels at a ratio of {ratio:g}: more than 1.")
    median = size.median()
    limit = float(median) * ratio
    if not bool(median > 0):
        return MassiveChannels({}, limit)
    found = enumerate((size / median).tolist())
    return MassiveChannels({channel: value for channel, value in found if value >= ratio}, limit)


def mean_magnitudes(maps: Float[Tensor, "batch channels height width"]) -> Float[Tensor, " channels"]:
    """Return the mean magnitude of each channel over images and places."""
    return maps.float().abs().mean(dim=(0, 2, 3))


def massive_channels(maps: Float[Tensor, "batch channels height width"], *, ratio: float = 20.0) -> dict[int, float]:
    """Return the channels whose mean magnitude is at least `ratio` times the median channel's, with that multiple.

    The median is of the magnitudes of all channels; where it is 0, no channel is massive.

    Raises: ConfigError for a ratio of at most 1.

    >>> import torch
    >>> massive_channels(torch.tensor([1.0, -50.0, 2.0])[None, :, None, None].expand(4, 3, 2, 2))
    {1: 25.0}
    """
    return find_massive(mean_magnitudes(maps), ratio=ratio).channels


def channel_limit(maps: Float[Tensor, "batch channels height width"], *, ratio: float = 20.0) -> float:
    """Return the magnitude at which massive channels are clipped: `ratio` times the median of channels."""
    return float(mean_magnitudes(maps).median()) * ratio


def treat_massive(
    maps: Float[Tensor, "batch channels height width"], channels: list[int], treatment: Treatment, *, limit: float
) -> Float[Tensor, "batch channels height width"]:
    """Return maps with the given channels kept, set to 0 (`drop`) or clipped to a magnitude of `limit` (`clip`).

    >>> import torch
    >>> treat_massive(torch.tensor([[[[3.0]], [[-50.0]]]]), [1], "clip", limit=20.0).flatten().tolist()
    [3.0, -20.0]
    """
    if treatment == "keep" or not channels:
        return maps
    found = maps.clone()
    found[:, channels] = 0.0 if treatment == "drop" else found[:, channels].clamp(-limit, limit)
    return found
