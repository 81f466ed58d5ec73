"""What a head reads of the cells of a run: a vector of one cell, a map of one cell, or the maps of all cells at once.

Features reach every head as one vector per sample, so banks, standardisation and saved probes need not distinguish
these. Maps are flattened in the order channel, row, column, the maps of several cells one after the other, and the head
takes them apart again (`maps_of`). The file of a head states what it reads by the constant `READS`.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.backbones.cell import Cell, parse_pool
from diffprobe.core.errors import ConfigError
from diffprobe.core.registry import probes

VECTOR, MAP, MAPS, CELLS = "vector", "map", "maps", "cells"
"""Values of `READS`: the pooled features of one cell (where the file has no such constant); the map of one cell; the
maps of all cells together; the features of all cells together, maps or pooled ones, which are maps of one place."""
JOINT = "cells"
"""Name, among the cells of a run, of what reads several of them together."""

Shape = tuple[int, int, int]
"""Channels, height and width."""
Shapes = Mapping[str, Shape]
"""Cell -> shape of its map."""


def reads(name: str) -> str:
    """Return what the classifier of a file reads: one of VECTOR, MAP, MAPS, CELLS. Raises: UnknownName."""
    found: str = getattr(probes("classifier").load(name), "READS", VECTOR)
    return found


def plan_inputs(
    name: str, widths: Mapping[str, int], sizes: Mapping[str, tuple[int, int]]
) -> dict[str, dict[str, Shape] | None]:
    """Return the inputs of a run's heads: name -> shapes of the maps that are read together, None for a vector.

    The name is that of the cell; that of several cells is `JOINT`.

    Args:
        name: file of the head.
        widths: cell -> width of its features, the channels of a map.
        sizes: cell -> height and width of its map, for the cells whose maps are kept.

    Raises: ConfigError for features without places where the head reads maps.
    """
    what = reads(name)
    if what == VECTOR:
        return dict.fromkeys(widths)
    shapes = {cell: _shape(name, cell, width, sizes.get(cell), pooled=what == CELLS) for cell, width in widths.items()}
    if what == MAP or len(shapes) == 1:
        return {cell: {cell: shape} for cell, shape in shapes.items()}
    return {JOINT: shapes}


def _shape(name: str, cell: str, width: int, size: tuple[int, int] | None, *, pooled: bool) -> Shape:
    kind, k = parse_pool(Cell.parse(cell).pool)
    if kind == "none" and size is not None:
        return (width, *size)
    if kind == "grid":
        return (width // (k * k), k, k)
    if pooled and kind in ("mean", "max"):
        return (width, 1, 1)
    raise ConfigError(
        f"classifier '{name}' reads maps [channels, height, width]; cell '{cell}' has features without them.",
        "pool=mean and max average places away, tokensN keeps them without their neighbours",
        fix="features.pool=none for whole maps, or gridK for maps of K x K means",
    )


def n_values(shapes: Shapes) -> int:
    """Return the number of values of a sample: the length of the vector."""
    return sum(channels * height * width for channels, height, width in shapes.values())


def joined(features: Mapping[str, Tensor], shapes: Shapes) -> Float[Tensor, "batch d_in"]:
    """Return the maps of a batch as one vector per sample. Raises: ConfigError for features of another shape."""
    parts = []
    for cell, shape in shapes.items():
        x = features[cell]
        if tuple(x.shape[1:]) not in (shape, (n_values({cell: shape}),)):
            raise ConfigError(
                f"cell '{cell}' has values of shape {tuple(x.shape[1:])} per sample; this probe reads {shape}.",
                "features.keep_draws=true keeps draws, which a probe of maps cannot read",
                fix="features.keep_draws=false",
            )
        parts.append(x.flatten(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def maps_of(x: Float[Tensor, "batch d_in"], shapes: Shapes) -> dict[str, Float[Tensor, "batch channels height width"]]:
    """Take the vectors of `joined` apart: cell -> maps."""
    parts = x.split([n_values({cell: shape}) for cell, shape in shapes.items()], dim=1)
    return {cell: part.unflatten(1, shape) for (cell, shape), part in zip(shapes.items(), parts, strict=True)}


def by_channel(
    mean: Float[Tensor, " d_in"], variance: Float[Tensor, " d_in"], shapes: Shapes
) -> tuple[Float[Tensor, " d_in"], Float[Tensor, " d_in"]]:
    """Pool the moments of each value over the places of its map: maps are standardised by channel.

    Args:
        mean, variance: moments of each value over samples.

    Returns: mean and variance of each channel over samples and places, repeated for each place.
    """
    means, variances = [], []
    for m, v in zip(maps_of(mean[None], shapes).values(), maps_of(variance[None], shapes).values(), strict=True):
        over = (2, 3)
        centre = m.mean(over, keepdim=True)
        spread = v.mean(over, keepdim=True) + (m - centre).square().mean(over, keepdim=True)
        means.append(centre.expand_as(m).flatten())
        variances.append(spread.expand_as(v).flatten())
    return torch.cat(means), torch.cat(variances)
