"""Controls beside the reconstruction scores of an autoencoder: what simpler codes of the same size leave unexplained.

All are fitted on the training rows and scored on the rows of each split, from float64 sums: the same for any number of
processes and any batches, to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import RowValues
from diffprobe.metrics import load_metrics, measured_on

MAX_NUMBERS = 1 << 24
"""Largest number of cells times the square of the width for which second moments are summed: 128 MiB for each split,
width 4096 of one cell."""
LEFT_OUT = "controls_left_out"
"""Key of a record's `detail`: control -> why it is not there."""


class ControlSize(NamedTuple):
    """Number of components or neurons that the controls of an autoencoder keep."""

    k: int
    """The number."""
    meaning: str
    """Where it comes from, for `detail`."""


@dataclass(frozen=True)
class Moments:
    """Float64 sums over the rows of a split, by cell."""

    n: Int[Tensor, " cells"]
    """Number of rows."""
    total: Float[Tensor, "cells d_in"]
    """Sum of x."""
    gram: Float[Tensor, "cells d_in d_in"]
    """Sum of x x^T."""

    def of(self, place: int | None) -> "Moments":
        """Return the sums of one cell, or over all cells (None), with an axis of length 1."""
        if place is not None:
            return Moments(*(part[place : place + 1] for part in (self.n, self.total, self.gram)))
        return Moments(*(part.sum(0, keepdim=True) for part in (self.n, self.total, self.gram)))

    def about(self, centre: Float[Tensor, " d_in"]) -> Float[Tensor, "d_in d_in"]:
        """Return the sum of (x - centre) (x - centre)^T over the rows of the first cell."""
        cross = torch.outer(self.total[0], centre)
        return self.gram[0] - cross - cross.T + self.n[0] * torch.outer(centre, centre)

    @property
    def mean(self) -> Float[Tensor, " d_in"]:
        """Mean of the rows of the first cell."""
        return self.total[0] / self.n[0].clamp(min=1)


class ReconstructionControls:
    """The controls of all autoencoders that read the same cells.

    `pca`: the mean of the training rows plus their first k principal components, of all cells together.

    Args:
        cells: names of the cells, in the order of `RowValues.group`.
        d_in: width of a row.
    """

    def __init__(self, cells: Sequence[str], d_in: int) -> None:
        self.cells, self.d_in = tuple(cells), d_in
        self._running: dict[str, Moments] = {}
        self._found: dict[str, Moments] = {}
        self._components: tuple[Tensor, Tensor] | None = None

    @property
    def too_wide(self) -> str | None:
        """Why second moments are not summed; None if they are."""
        if (numbers := len(self.cells) * self.d_in**2) <= MAX_NUMBERS:
            return None
        return f"{len(self.cells)} cells of width {self.d_in}: {numbers} second moments, at most {MAX_NUMBERS}"

    def update(self, split: str, rows: RowValues) -> None:
        """Add rows of a split."""
        if self.too_wide:
            return
        sums = self._running.get(split) or self._zeros(rows.x.device)
        x, n_cells = rows.x.detach().double(), len(self.cells)
        counts = rows.group.bincount(minlength=n_cells)
        order = rows.group.argsort(stable=True)
        for i, part in enumerate(x[order].split(counts.tolist()) if n_cells > 1 else [x]):
            sums.total[i] += part.sum(0)
            sums.gram[i] += part.T @ part
        self._running[split] = replace(sums, n=sums.n + counts)

    def finish(self, split: str, total: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Add the sums of all processes and keep those of the split; the next `update` starts again. Collective.

        Args:
            split: the split.
            total: returns the sum of a tensor over the processes.
            device: device of the sums of a process without rows.
        """
        if self.too_wide:
            return
        sums = self._running.pop(split, None) or self._zeros(device)
        self._found[split] = Moments(*(total(part).cpu() for part in (sums.n, sums.total, sums.gram)))
        if split == "train":
            self._components = None

    def pca(self, split: str, k: int, cell: str | None = None) -> float:
        """Return the fvu on a split of the first k principal components of the training rows.

        Args:
            split: a split that is finished, as "train" is too.
            k: number of components; from d_in on, nothing is left.
            cell: the rows of one cell; None for all rows. The components are those of all cells.
        """
        mean, components = self._fitted()
        rows = self._found[split].of(None if cell is None else self.cells.index(cell))
        scatter = rows.about(mean)
        kept = components[:, :k]
        if k >= self.d_in:
            return 0.0
        residual = scatter.trace() - (kept * (scatter @ kept)).sum()
        return max(float(residual), 0.0) / float(rows.about(rows.mean).trace())

    def _fitted(self) -> tuple[Tensor, Tensor]:
        """Return mean and principal components (columns, the largest variance first) of the training rows."""
        if self._components is None:
            rows = self._found["train"].of(None)
            _, vectors = torch.linalg.eigh(rows.about(rows.mean))
            self._components = rows.mean, vectors.flip(1)
        return self._components

    def add_to(self, records: Sequence[MetricRecord], size: ControlSize | None) -> list[MetricRecord]:
        """Return the records with these controls beside those scores that are a function of the fvu (`of_fvu`).

        Args:
            records: of one autoencoder.
            size: what the controls keep; None if the training set was not scored.
        """
        return [self._add(record, size) for record in records]

    def _add(self, record: MetricRecord, size: ControlSize | None) -> MetricRecord:
        of_fvu = _of_fvu(record.name)
        if of_fvu is None:
            return record
        controls: dict[str, float] = {}
        left_out: dict[str, str] = {}
        cell = record.cell if len(self.cells) > 1 else None
        missing = [split for split in ("train", record.split) if split not in self._found]
        if self.too_wide:
            left_out["pca"] = self.too_wide
        elif size is None or missing:
            left_out["pca"] = f"not scored after training: split {', '.join(missing or ['train'])}"
        else:
            controls["pca"] = of_fvu(self.pca(record.split, size.k, cell))
        detail: dict[str, Any] = {**record.detail}
        if controls and size is not None:
            detail |= {"control_k": size.k, "control_k_is": size.meaning}
        if left_out:
            detail[LEFT_OUT] = left_out
        return replace(record, controls={**controls, **record.controls}, detail=detail)

    def _zeros(self, device: torch.device) -> Moments:
        n, d = len(self.cells), self.d_in
        options = {"dtype": torch.float64, "device": device}
        return Moments(
            torch.zeros(n, dtype=torch.int64, device=device),
            torch.zeros(n, d, **options),
            torch.zeros(n, d, d, **options),
        )


def _of_fvu(name: str) -> Callable[[float], float] | None:
    if name not in {metric.name for metric in measured_on("sae")}:
        return None
    found: Callable[[float], float] | None = getattr(load_metrics("sae", [name])[0], "of_fvu", None)
    return found
