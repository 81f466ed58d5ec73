"""Hyperfeatures: a learned mixture of all cells (Luo et al., "Diffusion Hyperfeatures", NeurIPS 2023, section 3).

A run has one head for each target, which reads all its cells. A bottleneck block of each tap, shared over timesteps,
maps to one width; the maps are brought to one size and added with weights that are a softmax over all cells. As in the
released code the block is the residual bottleneck of ResNet with GroupNorm (32 groups), hidden width a quarter, and
the weights start equal. The paper matches points with the mixture; here its mean over places is classified by a linear
layer, which is not in the paper. Pooled features are maps of one place.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError
from diffprobe.probes.classifier.base import TrainedConfig
from diffprobe.probes.classifier.inputs import Shape, maps_of

READS = "cells"


@dataclass(frozen=True, kw_only=True)
class Config(TrainedConfig):
    """Keys of `probe=hyperfeatures`, below `probe.params`; the defaults are those of the paper."""

    width: int = 384
    """Channels of the mixture; a multiple of 4."""
    groups: int = 32
    """Groups of the normalisation; they divide a quarter of `width`."""
    size: int = 64
    """Height and width to which maps are brought; no larger than the largest map of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "groups", "size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is out of range: at least 1.")
        if self.width % (4 * self.groups):
            raise ConfigError(f"groups={self.groups} does not divide a quarter of width={self.width}.")

    @property
    def default_learning_rate(self) -> float:
        """Step size where none is set: that of the paper."""
        return 1e-3

    @property
    def measures_distance(self) -> bool:
        """The problem is not convex: a small gradient says nothing about a minimum."""
        return False


def make(config: Config, shapes: Mapping[str, Shape], n_classes: int, *, seed: int) -> "MixtureHead":
    """Return the untrained head for the maps of all cells."""
    return MixtureHead(config, shapes, n_classes)


class Bottleneck(nn.Module):
    """Residual bottleneck block with GroupNorm: 1 x 1, 3 x 3, 1 x 1, and a 1 x 1 shortcut where the width changes.

    Args:
        channels: channels of the input.
        config: `width` and `groups`.
    """

    def __init__(self, channels: int, config: Config) -> None:
        super().__init__()
        width, hidden = config.width, config.width // 4

        def layer(n_in: int, n_out: int, side: int) -> nn.Sequential:
            convolution = nn.Conv2d(n_in, n_out, side, padding=side // 2, bias=False)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            return nn.Sequential(convolution, nn.GroupNorm(config.groups, n_out))

        self.shortcut = nn.Identity() if channels == width else layer(channels, width, 1)
        self.path = nn.Sequential(
            layer(channels, hidden, 1), nn.ReLU(), layer(hidden, hidden, 3), nn.ReLU(), layer(hidden, width, 1)
        )

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch _ height width"]:
        """Return the projected maps."""
        found: Tensor = self.path(x) + self.shortcut(x)
        return found.relu()


class MixtureHead(nn.Module):
    """Logits from the mixture of several cells.

    Args:
        config: see `Config`.
        shapes: shape of the maps of each cell.
        n_classes: number of classes.

    Raises: ConfigError for a tap whose maps differ in channels between timesteps.
    """

    def __init__(self, config: Config, shapes: Mapping[str, Shape], n_classes: int) -> None:
        super().__init__()
        self.shapes = dict(shapes)
        taps: dict[str, int] = {}
        for name, (channels, _, _) in shapes.items():
            if taps.setdefault(Cell.parse(name).tap, channels) != channels:
                raise ConfigError(f"tap '{Cell.parse(name).tap}' has maps of several widths.", f"cell: {name}")
        self._tap = {name: list(taps).index(Cell.parse(name).tap) for name in shapes}
        self.size = tuple(min(config.size, max(shape[axis] for shape in shapes.values())) for axis in (1, 2))
        self.bottlenecks = nn.ModuleList([Bottleneck(channels, config) for channels in taps.values()])
        self.mixing = nn.Parameter(torch.ones(len(shapes)))
        self.linear = nn.Linear(config.width, n_classes)

    @torch.no_grad()
    def mixture(self) -> dict[str, float]:
        """Return the weight of each cell; they sum to 1."""
        return dict(zip(self.shapes, self.mixing.float().softmax(0).tolist(), strict=True))

    def mixed(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch width _ _"]:
        """Return the mixture of standardised features, which `inputs.joined` flattened."""
        total: Tensor | None = None
        for (cell, maps), weight in zip(maps_of(x, self.shapes).items(), self.mixing.softmax(0), strict=True):
            if maps.shape[2:] != self.size:
                maps = F.interpolate(maps, size=self.size, mode="bilinear", align_corners=False)
            part = weight * self.bottlenecks[self._tap[cell]](maps)
            total = part if total is None else total + part
        assert total is not None
        return total

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch n_classes"]:
        """Return the logits for standardised features."""
        logits: Tensor = self.linear(self.mixed(x).mean(dim=(2, 3)))
        return logits
