"""Replace the output of one tap while the denoiser runs, by features put back into the map they were read from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.cell import parse_pool
from diffprobe.backbones.layout import OutputLayout
from diffprobe.backbones.pool import grid_pool, mean_pool
from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.core.shapes import FeatureMap


@dataclass(frozen=True)
class Splice:
    """The way from a feature map to features of one pooling, and back.

    - `none`, `tokensN`: a feature is one place of the map. All places are replaced, those too that tokensN left out.
    - `mean`, `gridK`: a feature is the mean over places (of each part). Only that mean is replaced: the same vector,
      new mean minus old mean, is added to all places (of the part). Deviations from the mean stay.

    Args:
        pool: a pooling as `cell.parse_pool` reads it.
    Raises: ConfigError for `max`, which does not determine the places below the maximum.
    """

    pool: str

    def __post_init__(self) -> None:
        if parse_pool(self.pool)[0] == "max":
            raise ConfigError(
                "pool=max: a maximum cannot be put back into a feature map.", "allowed: mean, gridK, none, tokensN"
            )

    @property
    def is_pooled(self) -> bool:
        """Whether a feature is a mean over places rather than one place."""
        return parse_pool(self.pool)[0] in ("mean", "grid")

    @property
    def description(self) -> str:
        """What is replaced, in words."""
        if not self.is_pooled:
            return "every place of the map"
        parts = parse_pool(self.pool)[1] ** 2
        return (
            "the mean over places" + (f" of each of {parts} parts" if parts > 1 else "") + "; the rest of the map stays"
        )

    def check_size(self, tap: str, size: tuple[int, int]) -> None:
        """Refuse a grid whose parts overlap or are of unequal size on a tap's map. Raises: ConfigError."""
        kind, k = parse_pool(self.pool)
        if kind == "grid" and (size[0] % k or size[1] % k):
            raise ConfigError(
                f"pool={self.pool}: {size[0]} x {size[1]} places of tap '{tap}' are not {k} x {k} equal parts,"
                " so their means cannot be put back.",
            )

    def read(self, x: FeatureMap) -> Float[Tensor, "rows d_in"]:
        """Return the features of a map, float32: one row per sample if pooled, else one per place, sample by sample."""
        kind, k = parse_pool(self.pool)
        if kind == "mean":
            return mean_pool(x)
        if kind == "grid":
            return grid_pool(x, k=k)
        return x.float().permute(0, 2, 3, 1).reshape(-1, x.shape[1])

    def write(self, x: FeatureMap, before: Float[Tensor, "rows d_in"], after: Tensor) -> FeatureMap:
        """Return the map with its features `before` replaced by `after`; bit by bit the same map if they are equal."""
        if self.is_pooled:
            changed = x.float() + self._spread(after.float() - before, x)
        else:
            n, channels, height, width = x.shape
            changed = after.float().reshape(n, height, width, channels).permute(0, 3, 1, 2)
        return torch.empty_like(x).copy_(changed)  # in the layout of x: another one would round differently

    def fill(self, x: FeatureMap, mean: Float[Tensor, " d_in"]) -> FeatureMap:
        """Return a map of the shape of `x` that holds the same feature everywhere."""
        rows = mean.float().expand(len(x) if self.is_pooled else x.numel() // x.shape[1], -1)
        if not self.is_pooled:
            return self.write(x, rows, rows)
        return torch.empty_like(x).copy_(self._spread(rows, x))

    def _spread(self, values: Float[Tensor, "batch d_in"], x: FeatureMap) -> FeatureMap:
        """Give each place the value of its part."""
        k = parse_pool(self.pool)[1]
        parts = values.reshape(len(x), x.shape[1], k, k)
        return parts.repeat_interleave(x.shape[2] // k, 2).repeat_interleave(x.shape[3] // k, 3)


@contextmanager
def replaced(
    network: nn.Module, tap: str, layout: OutputLayout, change: Callable[[FeatureMap], FeatureMap | None]
) -> Iterator[None]:
    """Replace the map of a tap in every pass by what `change` returns.

    Text tokens beside those of the image stay, as do other tensors of the output.

    Args:
        network: the denoiser.
        tap: module path.
        layout: where the image is in its output.
        change: None leaves the map as it is.
    Raises: ConfigError for a tap that is not a module, or (in the pass, since only the output shows it) for one whose
        output is split into heads; RunFailed for one without an image.
    """

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        x = layout.image(output, tap)
        if x is None:
            raise RunFailed(f"tap '{tap}' gave no feature map.", f"got: {type(output).__name__}")
        new = change(x)
        if new is None:
            return None
        placed = layout.with_image(output, tap, new)
        if placed is None:
            raise ConfigError(
                f"the output of tap '{tap}' cannot be put back: it is split into heads.",
                "choose a whole block, or a transformer block",
            )
        return placed

    if tap not in dict(network.named_modules()):
        raise ConfigError(f"'{tap}' is not a module of the network, so its output cannot be replaced.")
    handle = network.get_submodule(tap).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
