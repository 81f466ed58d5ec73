"""The rows of a sample: over cells, draws and places. Owns their order and numbers, and where a row's values lie.

Within a sample the rows run cell by cell, then draw by draw, then place by place in reading order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.cell import Cell, parse_pool
from diffprobe.core.errors import ConfigError

_AXES = {"none": 3, "tokens": 2}
"""Pooling -> axes of one draw of one sample; 1 for all others."""


def by_place(values: Float[Tensor, "samples ..."], cell: str) -> Float[Tensor, "samples ..."]:
    """View features of a cell with the width as their last axis: a map [n, c, h, w] as [n, h, w, c].

    Raises: ConfigError for another shape than the cell's pooling gives.
    """
    kind, _ = parse_pool(Cell.parse(cell).pool)
    axes = _AXES.get(kind, 1)
    if values.ndim - axes not in (1, 2):  # samples; samples and draws
        raise ConfigError(
            f"cell '{cell}' has features of shape {list(values.shape)}.",
            f"expected for pool={kind}: {axes} axes after the samples, or {axes + 1} with features.keep_draws=true",
        )
    return values.movedim(-3, -1) if kind == "none" else values


def joint_width(widths: Mapping[str, int]) -> int:
    """Return the width that all cells have. Raises: ConfigError if they differ."""
    if len(set(widths.values())) != 1:
        raise ConfigError(
            "a sparse autoencoder reads rows of one width; these cells differ.",
            *(f"{cell}: {width}" for cell, width in widths.items()),
            fix="name cells of one width in probe.cell",
        )
    return next(iter(widths.values()))


def select(
    values: Float[Tensor, "samples ..."], cell: str, sample: Int[Tensor, " rows"], within: Int[Tensor, " rows"]
) -> Float[Tensor, "rows d_in"]:
    """Return rows of a cell: of each its sample, and its number among the rows that the sample has in this cell."""
    places = by_place(values, cell)
    sample, within = sample.to(values.device), within.to(values.device)
    if places.ndim == 2:
        return places.index_select(0, sample)
    if places.is_contiguous():
        return places.view(-1, places.shape[-1]).index_select(0, sample * places.shape[1:-1].numel() + within)
    return places[(sample, *torch.unravel_index(within, places.shape[1:-1]))]


@dataclass(frozen=True)
class RowLayout:
    """How the rows of samples are numbered through: row r is row r % total of sample r // total.

    Attributes:
        cells: the cells, in order.
        starts: number of the first row of each cell within a sample.
        total: rows a sample.
        width: values a row.
    """

    cells: tuple[str, ...]
    starts: tuple[int, ...]
    total: int
    width: int

    @classmethod
    def of(cls, cells: Sequence[str], features: Mapping[str, Tensor]) -> "RowLayout":
        """Make the layout of some cells from features of any samples. Raises: ConfigError, see `by_place`."""
        views = {cell: by_place(features[cell], cell) for cell in cells}
        ends = torch.tensor([0, *(view.shape[1:-1].numel() for view in views.values())]).cumsum(0).tolist()
        width = joint_width({cell: view.shape[-1] for cell, view in views.items()})
        return cls(tuple(cells), tuple(ends[:-1]), ends[-1], width)

    def group(self, number: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Return the index of the cell of each row, given its number within its sample."""
        return torch.searchsorted(torch.tensor(self.starts), number, right=True) - 1
