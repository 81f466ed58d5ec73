"""The rows of a sample over cells, draws and positions: their order, their numbers and their values.

Within a sample, rows are ordered by cell, then by draw, then by position in reading order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.backbones.cell import Cell, parse_pool
from diffprobe.core.errors import ConfigError

_AXES = {"none": 3, "tokens": 2}
"""Pooling -> number of axes of one draw of one sample; 1 for all others."""


def by_place(values: Float[Tensor, "samples ..."], cell: str) -> Float[Tensor, "samples ..."]:
    """View features of a cell with the width as their last axis: a map [n, c, h, w] as [n, h, w, c].

    Raises: ConfigError for a shape that does not match the cell's pooling.
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
    """Return the common width of all cells. Raises: ConfigError if they differ."""
    if len(set(widths.values())) != 1:
        raise ConfigError(
            "a sparse autoencoder needs cells of one width.",
            *(f"{cell}: {width}" for cell, width in widths.items()),
            fix="select cells of one width in probe.cell",
        )
    return next(iter(widths.values()))


def select(
    values: Float[Tensor, "samples ..."], cell: str, sample: Int[Tensor, " rows"], within: Int[Tensor, " rows"]
) -> Float[Tensor, "rows d_in"]:
    """Return rows of a cell, each given by its sample and its number within the sample and cell."""
    places = by_place(values, cell)
    sample, within = sample.to(values.device), within.to(values.device)
    if places.ndim == 2:
        return places.index_select(0, sample)
    if places.is_contiguous():
        return places.view(-1, places.shape[-1]).index_select(0, sample * places.shape[1:-1].numel() + within)
    return places[(sample, *torch.unravel_index(within, places.shape[1:-1]))]


@dataclass(frozen=True)
class RowLayout:
    """The numbering of the rows of samples: row r is row r % total of sample r // total.

    Attributes:
        cells: the cells, in order.
        starts: number of the first row of each cell within a sample.
        total: rows per sample.
        width: values per row.
    """

    cells: tuple[str, ...]
    starts: tuple[int, ...]
    total: int
    width: int

    @classmethod
    def of(cls, cells: Sequence[str], features: Mapping[str, Tensor]) -> "RowLayout":
        """Return the layout of some cells, given features of any samples. Raises: ConfigError, see `by_place`."""
        views = {cell: by_place(features[cell], cell) for cell in cells}
        ends = torch.tensor([0, *(view.shape[1:-1].numel() for view in views.values())]).cumsum(0).tolist()
        width = joint_width({cell: view.shape[-1] for cell, view in views.items()})
        return cls(tuple(cells), tuple(ends[:-1]), ends[-1], width)

    def group(self, number: Int[Tensor, " rows"]) -> Int[Tensor, " rows"]:
        """Return the index of the cell of each row, given its number within its sample."""
        return torch.searchsorted(torch.tensor(self.starts), number, right=True) - 1
