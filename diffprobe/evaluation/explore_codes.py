"""The codes of the images of a split, one batch at a time, with the codes of their single rows.

`stream_codes` reads each shard of a store once and holds one batch; every pass of the explorer goes through it, so all
passes see the same activations.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.backbones.cell import Cell
from diffprobe.evaluation.latent_codes import CLASS
from diffprobe.evaluation.sample_codes import bound, largest_of_samples, rows_of
from diffprobe.features.batch import FeatureTable
from diffprobe.features.row_layout import by_place
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.types import Code

_ROWS = 1024
"""Largest number of rows that are encoded at once, but for an image with more."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of an image: over cells, in each cell over noise draws, in each draw over positions."""

    timesteps: tuple[int, ...]
    """Timestep of each cell."""
    ends: tuple[int, ...]
    """Number of rows up to the end of each cell."""
    map_size: tuple[int, int] | None
    """Height and width where the cells keep whole maps of more than one position; None otherwise."""

    @classmethod
    def of(cls, table: FeatureTable, cells: Sequence[str]) -> "Rows":
        """Return the rows of the images of a table."""
        views = [by_place(table.features[cell][:1], cell) for cell in cells]
        ends = np.cumsum([view.shape[1:-1].numel() for view in views]).tolist()
        size = None
        if Cell.parse(cells[0]).pool == "none":
            height, width = views[0].shape[-3:-1]
            size = (height, width) if height * width > 1 else None
        return cls(timesteps=tuple(Cell.parse(cell).timestep for cell in cells), ends=tuple(ends), map_size=size)


@dataclass(frozen=True, kw_only=True)
class ImageCodes:
    """The codes of a batch of images of one shard."""

    first: int
    """Number of the first image in the split."""
    table: FeatureTable
    """Table of the shard."""
    chosen: range
    """The rows of these images in the table."""
    code: Code
    """Activation of each image: the largest over its rows."""
    row_code: Code
    """Codes of the rows, those of each image following each other, (images x rows, k)."""
    rows: Rows

    @property
    def keys(self) -> list[str]:
        """Keys of the images."""
        return self.table.keys[self.chosen.start : self.chosen.stop]

    @property
    def captions(self) -> list[str]:
        """Captions of the images, "" for none."""
        found = self.table.captions[self.chosen.start : self.chosen.stop]
        return found or [""] * len(self.chosen)

    def labels(self, name: str) -> Int[Tensor, " batch"]:
        """Return the class ("class") or the value of an attribute of each image, -1 for none."""
        values = self.table.label if name == CLASS else self.table.attributes[name]
        return values[self.chosen.start : self.chosen.stop]

    def by_timestep(self) -> Iterator[tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]]:
        """Yield values and latents of the rows of each cell."""
        n, width = len(self.chosen), self.row_code.values.shape[1]
        values, indices = (part.reshape(n, -1, width) for part in self.row_code)
        for start, end in zip((0, *self.rows.ends), self.rows.ends, strict=False):
            yield values[:, start:end].reshape(-1, width), indices[:, start:end].reshape(-1, width)

    def maps(self, image: int, latents: Sequence[int]) -> NDArray[np.float32]:
        """Return the activation of some latents at each position of an image: the largest over cells and draws.

        Args:
            image: number of the image in the batch.
            latents: numbers of the latents.

        Returns: (latents, height, width), 0 where inactive.
        """
        assert self.rows.map_size is not None
        n_rows = self.rows.ends[-1]
        part = slice(image * n_rows, (image + 1) * n_rows)
        values, indices = self.row_code.values[part].cpu(), self.row_code.indices[part].cpu()
        found = torch.stack(
            [torch.where(indices == latent, values, 0.0).amax(1) for latent in latents]
        ).clamp(min=0)  # fmt: skip
        whole: NDArray[np.float32] = found.reshape(len(latents), -1, *self.rows.map_size).amax(1).numpy()
        return whole


@torch.no_grad()
def stream_codes(
    sae: KSAE, tables: Iterable[FeatureTable], cells: Sequence[str], *, part: tuple[int, int] = (0, 1)
) -> Iterator[ImageCodes]:  # fmt: skip
    """Yield the codes of all images of a split in order; no more than one batch and one mapped table is held.

    Args:
        sae: an autoencoder.
        tables: the parts of the split.
        cells: the cells that it reads, all of one tap, condition and pooling.
        part: (i, n): encode every n-th part from the i-th on; images keep their number in the whole split.
    """
    first = 0
    for number, table in enumerate(tables):
        if not len(table):
            continue
        if number % part[1] != part[0]:
            first += len(table)
            continue
        views = [by_place(table.features[cell], cell) for cell in cells]
        layout = Rows.of(table, cells)
        n_rows = layout.ends[-1]
        step = max(_ROWS // n_rows, 1)
        for start in range(0, len(table), step):
            chosen = range(start, min(start + step, len(table)))
            x = rows_of(views, torch.arange(chosen.start, chosen.stop)).reshape(-1, views[0].shape[-1])
            row_code = bound(sae, views, cells, len(chosen)).encode(x.to(sae.W_enc.device))
            code = row_code if n_rows == 1 else largest_of_samples(row_code, len(chosen), sae.n_latents)
            yield ImageCodes(
                first=first + start, table=table, chosen=chosen, code=code, row_code=row_code, rows=layout
            )  # fmt: skip
        first += len(table)
