"""Poolings of a feature map, and the sum over draws. They run on the device, inside the pass, in float32."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from diffprobe.backbones.cell import parse_pool
from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.core.shapes import FeatureMap, Features

Pool = Callable[[FeatureMap, Sequence[str]], Tensor]
"""Takes feature maps and the keys of their samples, one per row."""


def mean_pool(x: FeatureMap, keys: Sequence[str] = ()) -> Features:
    """Average over space."""
    return x.float().mean(dim=(2, 3))


def max_pool(x: FeatureMap, keys: Sequence[str] = ()) -> Features:
    """Take each channel's maximum over space."""
    return x.float().amax(dim=(2, 3))


def no_pool(x: FeatureMap, keys: Sequence[str] = ()) -> FeatureMap:
    """Keep the map, as a copy: the network may write into its own tensor later."""
    return x.float().clone(memory_format=torch.contiguous_format)


def grid_pool(x: FeatureMap, keys: Sequence[str] = (), *, k: int) -> Features:
    """Average over k x k parts of the map: `[batch, channels * k * k]`, the parts row by row within a channel."""
    return adaptive_avg_pool2d(x.float(), k).flatten(1)


def token_pool(x: FeatureMap, keys: Sequence[str], *, n: int, seed: int) -> Float[Tensor, "batch n channels"]:
    """Keep n places of the map, fixed by (seed, key) and the map's size alone.

    Therefore all timesteps, draws and taps of one size keep the same places of an image.
    """
    places = torch.stack([token_places(seed, key, x.shape[2] * x.shape[3], n) for key in keys]).to(x.device)
    tokens = x.flatten(2).transpose(1, 2)
    return tokens.gather(1, places[:, :, None].expand(-1, -1, x.shape[1])).float()


@lru_cache(maxsize=2**12)  # a few batches, since taps, timesteps and draws share places; 4,096 places take 32 KB
def token_places(seed: int, key: str, n_places: int, n: int) -> Int[Tensor, " n"]:
    """Draw n of the places of a map without repetition, ascending."""
    generator = torch.Generator().manual_seed(derive_seed("tokens", seed, key, n_places))
    return torch.randperm(n_places, generator=generator)[:n].sort().values


def make_pool(name: str, *, seed: int = 0) -> Pool:
    """Return the pooling called `name`; `seed` is that of the token places. Raises: ConfigError."""
    kind, size = parse_pool(name)
    if kind == "grid":
        return lambda x, keys: grid_pool(x, keys, k=size)
    if kind == "tokens":
        return lambda x, keys: token_pool(x, keys, n=size, seed=seed)
    pools: dict[str, Pool] = {"mean": mean_pool, "max": max_pool, "none": no_pool}
    return pools[kind]


def add_rows(total: Float[Tensor, "kept ..."], values: Float[Tensor, "rows ..."], start: int) -> None:
    """Add rows to `total` from row `start` on, starting over at its end: once per draw, or never if draws are kept.

    Rows are added draw by draw, so that sums are reproducible on every device.
    """
    n_grid, done = len(total), 0
    while done < len(values):
        first = (start + done) % n_grid
        take = min(n_grid - first, len(values) - done)
        total[first : first + take] += values[done : done + take]
        done += take


def pooled_width(name: str, channels: int) -> int:
    """Return `d_in` of a pooled feature: the size of its last axis, or the channels if the map is kept."""
    kind, size = parse_pool(name)
    return channels * size * size if kind == "grid" else channels


def check_size(name: str, tap: str, size: tuple[int, int]) -> None:
    """Check that a tap has the places that a pooling needs. Raises: ConfigError."""
    kind, number = parse_pool(name)
    if (kind == "grid" and number > min(size)) or (kind == "tokens" and number > size[0] * size[1]):
        raise ConfigError(
            f"pool={name}, but tap '{tap}' has {size[0]} x {size[1]} places.",
            f"allowed: at most grid{min(size)}, tokens{size[0] * size[1]}",
        )
