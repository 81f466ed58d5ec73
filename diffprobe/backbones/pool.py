"""From a feature map to a feature. Owns the poolings; they run on the device, inside the pass, in float32."""

from collections.abc import Callable

from torch import Tensor

from diffprobe.backbones.cell import POOLS, check_choice
from diffprobe.core.shapes import FeatureMap, Features


def mean_pool(x: FeatureMap) -> Features:
    """Average over space."""
    return x.float().mean(dim=(2, 3))


def max_pool(x: FeatureMap) -> Features:
    """Take each channel's maximum over space."""
    return x.float().amax(dim=(2, 3))


def no_pool(x: FeatureMap) -> FeatureMap:
    """Keep the map, as a copy: the network may go on to write into its own tensor."""
    return x.float().clone()


def make_pool(name: str) -> Callable[[Tensor], Tensor]:
    """Return the pooling called `name`. Raises: ConfigError."""
    check_choice("pool", name, POOLS)
    return {"mean": mean_pool, "max": max_pool, "none": no_pool}[name]
