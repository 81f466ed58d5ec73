"""Hyperfeatures for matching: a learned mixture of cells, trained on pairs of images with the same named points.

Luo et al., "Diffusion Hyperfeatures" (NeurIPS 2023, 2305.14334), sections 3.2 and 3.3: a bottleneck of each tap, shared
over timesteps, maps to one width, and the maps are added with weights that are a softmax over all cells. The loss is
a symmetric cross-entropy: the feature of each point is compared, by cosine over a fixed temperature, with all places
of the other image, and the place of the same point there is its class; in both directions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from diffprobe.backbones.cell import Cell
from diffprobe.core.errors import ConfigError, NonFinite
from diffprobe.core.rng import derive_seed
from diffprobe.probes.classifier.hyperfeatures import Bottleneck, Config

TEMPERATURE = 0.07
"""Temperature of the cosines, fixed as in the released code."""
PairMaps = Mapping[str, Float[Tensor, "2 _ _ _"]]
"""Cell -> maps of the source and the target image."""


@dataclass(frozen=True)
class TrainingPair:
    """A pair of images with the points that both have."""

    maps: PairMaps
    """The maps of both images."""
    points: tuple[Float64[Tensor, "n 2"], Float64[Tensor, "n 2"]]
    """(x, y) of the points in source and target, in pixels."""


class PairMixture(nn.Module):
    """The mixture of the maps of several cells, as one map.

    Args:
        shapes: channels, height and width of the maps of each cell.
        scales: number by which the maps of each cell are divided, such as their root mean square.
        width: channels of the mixture; a multiple of 4.
        groups: groups of the normalisation; they divide a quarter of `width`.
        learn_weights: whether the weights of the cells are learned; without it all are equal.

    Raises: ConfigError for a tap whose maps differ in channels between timesteps, or groups that do not divide.
    """

    scale: Tensor

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int, int]],
        scales: Mapping[str, float],
        *,
        width: int,
        groups: int,
        learn_weights: bool = True,
    ) -> None:
        super().__init__()
        config = Config(width=width, groups=groups)
        taps: dict[str, int] = {}
        for name, (channels, _, _) in shapes.items():
            if taps.setdefault(Cell.parse(name).tap, channels) != channels:
                raise ConfigError(f"tap '{Cell.parse(name).tap}' has maps of several widths.", f"cell: {name}")
        self.cells = tuple(shapes)
        self._tap = {name: list(taps).index(Cell.parse(name).tap) for name in shapes}
        self.size = (max(shape[1] for shape in shapes.values()), max(shape[2] for shape in shapes.values()))
        self.bottlenecks = nn.ModuleList([Bottleneck(channels, config) for channels in taps.values()])
        self.mixing = nn.Parameter(torch.zeros(len(shapes)), requires_grad=learn_weights)
        self.register_buffer("scale", torch.tensor([scales[name] for name in shapes]))

    def weights(self) -> dict[str, float]:
        """Return the weight of each cell; they sum to 1."""
        return dict(zip(self.cells, self.mixing.detach().softmax(0).tolist(), strict=True))

    def forward(self, maps: Mapping[str, Float[Tensor, "batch _ _ _"]]) -> Float[Tensor, "batch width height width2"]:
        """Return the mixture, at the size of the largest map. Raises: KeyError without the maps of a cell."""
        total: Tensor | None = None
        for cell, weight, scale in zip(self.cells, self.mixing.softmax(0), self.scale, strict=True):
            own = F.interpolate(maps[cell].float() / scale, size=self.size, mode="bilinear", align_corners=False)
            part = weight * self.bottlenecks[self._tap[cell]](own)
            total = part if total is None else total + part
        assert total is not None
        return total


def places(points: Float64[Tensor, "n 2"], size: tuple[int, int], resolution: int) -> Int[Tensor, " n"]:
    """Return the place of a map, in reading order, that each point (x, y in pixels) is in.

    >>> places(torch.tensor([[0.0, 0.0], [63.9, 32.0]], dtype=torch.float64), (16, 16), 64).tolist()
    [0, 143]
    """
    column = (points[:, 0] * size[1] / resolution).long().clamp(0, size[1] - 1)
    row = (points[:, 1] * size[0] / resolution).long().clamp(0, size[0] - 1)
    return row * size[1] + column


def pair_loss(
    source: Float[Tensor, "d h w"],
    target: Float[Tensor, "d h w"],
    points: tuple[Float64[Tensor, "n 2"], Float64[Tensor, "n 2"]],
    *,
    resolution: int,
) -> Float[Tensor, ""]:
    """Return the symmetric cross-entropy of a pair: points of each image among all places of the other."""
    size = (source.shape[1], source.shape[2])
    one, other = (F.normalize(x.flatten(1), dim=0) for x in (source, target))
    here, there = (places(found, size, resolution).to(source.device) for found in points)
    forth = one[:, here].T @ other / TEMPERATURE
    back = other[:, there].T @ one / TEMPERATURE
    return (F.cross_entropy(forth, there) + F.cross_entropy(back, here)) / 2


def make_mixture(
    pairs: Sequence[TrainingPair], cells: Sequence[str], *, width: int, groups: int, learn_weights: bool, seed: int
) -> PairMixture:
    """Build the untrained mixture of some cells, each scaled by its root mean square over the training pairs."""
    shapes = {cell: _shape(pairs[0].maps[cell]) for cell in cells}
    scales = {
        cell: max(1e-12, float(torch.stack([pair.maps[cell].float().square().mean() for pair in pairs]).mean().sqrt()))
        for cell in cells
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("mixture", seed))
        return PairMixture(shapes, scales, width=width, groups=groups, learn_weights=learn_weights)


def _shape(maps: Tensor) -> tuple[int, int, int]:
    _, channels, height, width = maps.shape
    return channels, height, width


def train_mixture(
    mixture: PairMixture,
    pairs: Sequence[TrainingPair],
    *,
    resolution: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
    every: int,
) -> Iterator[tuple[int, float]]:
    """Train in place, and yield the number of steps and the mean loss after each `every` steps, and at the end.

    Args:
        pairs: training pairs; an epoch takes each once, in an order fixed by the seed.
        resolution: side of the images in pixels.
        batch: pairs per step; the paper takes one.
        learning_rate: of Adam.
    Raises: NonFinite for a loss that is not finite.
    """
    optimizer = torch.optim.Adam([one for one in mixture.parameters() if one.requires_grad], lr=learning_rate)
    generator = torch.Generator().manual_seed(derive_seed("mixture order", seed))
    left: list[int] = []
    total, count = 0.0, 0
    for step in range(1, steps + 1):
        while len(left) < batch:
            left += torch.randperm(len(pairs), generator=generator).tolist()
        chosen, left = [pairs[i] for i in left[:batch]], left[batch:]
        found = mixture({cell: torch.cat([pair.maps[cell] for pair in chosen]) for cell in mixture.cells})
        losses = [
            pair_loss(found[2 * i], found[2 * i + 1], pair.points, resolution=resolution)
            for i, pair in enumerate(chosen)
        ]
        loss = torch.stack(losses).mean()
        if not bool(torch.isfinite(loss)):
            raise NonFinite(f"hyperfeatures: the loss became {float(loss.detach())} after {step - 1} steps.")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total, count = total + float(loss.detach()), count + 1
        if step % every == 0 or step == steps:
            yield step, total / count
            total, count = 0.0, 0
