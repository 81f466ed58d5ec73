"""Massive channels: the few channels of a transformer whose values are far above all others, at all places.

They hold no local information but make up most of the norm of a feature, so cosines and distances see little else
(Sun et al. 2024, 2402.17762; for diffusion transformers DiTF, Gan et al. 2025, 2505.18584, which sets the channels 154
and 1446 of FLUX to 0). The channels are found from data by a rule here.
"""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError

Treatment = Literal["keep", "drop", "clip"]


def massive_channels(maps: Float[Tensor, "batch channels height width"], *, ratio: float = 20.0) -> dict[int, float]:
    """Return the channels whose mean magnitude is at least `ratio` times the median channel's, with that multiple.

    The median is of the magnitudes of all channels; where it is 0, no channel is massive.

    Raises: ConfigError for a ratio of at most 1.

    >>> import torch
    >>> massive_channels(torch.tensor([1.0, -50.0, 2.0])[None, :, None, None].expand(4, 3, 2, 2))
    {1: 25.0}
    """
    if not ratio > 1:
        raise ConfigError(f"massive channels at a ratio of {ratio:g}: more than 1.")
    size = maps.float().abs().mean(dim=(0, 2, 3))
    median = size.median()
    if not bool(median > 0):
        return {}
    found = (size / median).tolist()
    return {channel: value for channel, value in enumerate(found) if value >= ratio}


def channel_limit(maps: Float[Tensor, "batch channels height width"], *, ratio: float = 20.0) -> float:
    """Return the magnitude at which massive channels are clipped: `ratio` times the median of channels."""
    return float(maps.float().abs().mean(dim=(0, 2, 3)).median()) * ratio


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
