"""Controls beside the reconstruction scores of an autoencoder: what simpler codes of the same size leave unexplained.

All are fitted on the training rows and scored on the rows of each split, from float64 sums: the same for any number of
processes and any batches, to rounding.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.result import MetricRecord
from diffprobe.features.batch import RowValues
from diffprobe.metrics import load_metrics, measured_on
from diffprobe.training.sae_random_dictionary import RandomDictionary

MAX_NUMBERS = 1 << 24
"""Largest number of cells times the square of the width for which second moments are summed: 128 MiB for each split,
width 4096 of one cell."""
_CHUNK = 1 << 22
"""Largest number of values that are sorted at a time."""
LEFT_OUT = "controls_left_out"
"""Key of a record's `detail`: control -> why it is not there."""


class ControlSize(NamedTuple):
    """Number of components or neurons that the controls of an autoencoder keep."""

    k: int
    """The number."""
    meaning: str
    """Where it comes from, for `detail`."""


class RowScale(nn.Module):
    """Mean and standard deviation of the training rows, kept in checkpoints; a checkpoint without them leaves them NaN.

    Args:
        d_in: width of a row.
    """

    mean: Float[Tensor, " d_in"]
    std: Float[Tensor, " d_in"]

    def __init__(self, d_in: int) -> None:
        super().__init__()
        for name in ("mean", "std"):
            self.register_buffer(name, torch.full((d_in,), torch.nan, dtype=torch.float64))

    @property
    def known(self) -> bool:
        """Whether they are set."""
        return not bool(self.mean.isnan().any())

    def set(self, mean: Float[Tensor, "*d_in"], variance: Float[Tensor, "*d_in"]) -> None:
        """Set both; torchmetrics drops the axis of a width of 1."""
        self.mean.copy_(mean.reshape(-1))
        self.std.copy_(variance.reshape(-1).sqrt())

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        for name, value in self.named_buffers():
            state_dict.setdefault(prefix + name, torch.full_like(value, torch.nan))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class ReconstructionControls:
    """The controls of all autoencoders that read the same cells; all are fitted on the training rows of all cells.

    `pca`: the mean of the training rows plus their first k principal components.
    `raw_neurons`: of each row the k features that are farthest from the mean, in standard deviations; the others are at
    the mean. A feature that is constant in training is kept last.

    Args:
        cells: names of the cells, in the order of `RowValues.group`.
        d_in: width of a row.
    """

    def __init__(self, cells: Sequence[str], d_in: int) -> None:
        self.cells, self.d_in = tuple(cells), d_in
        self._running: dict[str, dict[str, Tensor]] = {}
        self._found: dict[str, dict[str, Tensor]] = {}
        self._components: tuple[Tensor, Tensor] | None = None

    @property
    def too_wide(self) -> str | None:
        """Why second moments are not summed; None if they are."""
        if (numbers := len(self.cells) * self.d_in**2) <= MAX_NUMBERS:
            return None
        return f"{len(self.cells)} cells of width {self.d_in}: {numbers} second moments, at most {MAX_NUMBERS}"

    def update(self, split: str, rows: RowValues, scale: RowScale) -> None:
        """Add rows of a split. `scale` is that of the training rows."""
        if split not in self._running:
            self._running[split] = self._zeros(rows.x.device)
        sums, x, n_cells = self._running[split], rows.x.detach().double(), len(self.cells)
        counts = rows.group.bincount(minlength=n_cells)
        order = rows.group.argsort(stable=True)
        sums["n"] += counts
        for i, part in enumerate(x[order].split(counts.tolist()) if n_cells > 1 else [x]):
            sums["total"][i] += part.sum(0)
            sums["square"][i] += part.square().sum()
            if "gram" in sums:
                sums["gram"][i] += part.T @ part
            for chunk in part.split(max(1, _CHUNK // self.d_in)):
                sums["neurons"][i] += neuron_residuals(chunk, scale)

    def finish(self, split: str, total: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Add the sums of all processes and keep those of the split; the next `update` starts again. Collective.

        Args:
            split: the split.
            total: returns the sum of a tensor over the processes.
            device: device of the sums of a process without rows.
        """
        sums = self._running.pop(split, None) or self._zeros(device)
        self._found[split] = {name: total(part).cpu() for name, part in sums.items()}
        if split == "train":
            self._components = None

    def pca(self, split: str, k: int, cell: str | None = None) -> float:
        """Return the fvu on a split of the first k principal components of the training rows.

        Args:
            split: a split that is finished, as "train" is too.
            k: number of components; from d_in on, nothing is left.
            cell: the rows of one cell; None for all rows. The components are those of all cells.
        """
        if self._components is None:
            rows = self._sums("train", None)
            mean = rows["total"] / rows["n"]
            self._components = mean, torch.linalg.eigh(_scatter(rows, mean)).eigenvectors.flip(1)
        mean, components = self._components
        rows, kept = self._sums(split, cell), components[:, :k]
        scatter = _scatter(rows, mean)
        residual = scatter.trace() - (kept * (scatter @ kept)).sum() if k < self.d_in else scatter.new_zeros(())
        return float(residual.clamp(min=0) / _variance(rows))

    def raw_neurons(self, split: str, k: int, cell: str | None = None) -> float:
        """Return the fvu on a split of the k features of each row that are farthest from the mean. See `pca`."""
        rows = self._sums(split, cell)
        return float(rows["neurons"][min(k, self.d_in)] / _variance(rows))

    def random_dictionary(self, split: str, dictionary: RandomDictionary, scale: float, cell: str | None) -> float:
        """Return the fvu on a split of a random dictionary.

        Args:
            split, cell: see `pca`.
            dictionary: the dictionary, of the same rows.
            scale: factor of the rows in its unit.
        """
        residual = dictionary.residual(split, None if cell is None else self.cells.index(cell))
        return residual / scale**2 / float(_variance(self._sums(split, cell)))

    def add_to(
        self, records: Sequence[MetricRecord], size: ControlSize | None, dictionary: RandomDictionary, scale: float
    ) -> list[MetricRecord]:
        """Return the records with these controls beside those scores that are a function of the fvu (`of_fvu`).

        Args:
            records: of one autoencoder.
            size: what the controls keep; None if the training set was not scored.
            dictionary, scale: see `random_dictionary`.
        """
        return [self._add(record, size, dictionary, scale) for record in records]

    def _add(
        self, record: MetricRecord, size: ControlSize | None, dictionary: RandomDictionary, scale: float
    ) -> MetricRecord:
        convert = of_fvu(record.name)
        if convert is None:
            return record
        cell, split = record.cell if len(self.cells) > 1 else None, record.split
        controls: dict[str, float] = {}
        left_out: dict[str, str] = {}
        missing = [one for one in dict.fromkeys((split, "train")) if one not in self._found]
        impossible = {"pca": self.too_wide, "raw_neurons": None, "random_dictionary": dictionary.left_out}
        for name, reason in impossible.items():
            if reason is not None:
                left_out[name] = reason
            elif size is None or missing:
                left_out[name] = f"not scored after training: split {', '.join(missing or ['train'])}"
            elif name == "random_dictionary":
                controls[name] = convert(self.random_dictionary(split, dictionary, scale, cell))
            else:
                controls[name] = convert((self.pca if name == "pca" else self.raw_neurons)(split, size.k, cell))
        detail: dict[str, Any] = {**record.detail}
        if controls and size is not None:
            detail |= {"control_k": size.k, "control_k_is": size.meaning}
        if left_out:
            detail[LEFT_OUT] = left_out
        return replace(record, controls={**controls, **record.controls}, detail=detail)

    def _sums(self, split: str, cell: str | None) -> dict[str, Tensor]:
        """Return the sums over the rows of one cell, or of all cells, without the axis of cells."""
        place = None if cell is None else self.cells.index(cell)
        return {name: part.sum(0) if place is None else part[place] for name, part in self._found[split].items()}

    def _zeros(self, device: torch.device) -> dict[str, Tensor]:
        n, d = len(self.cells), self.d_in
        shapes = {"total": (n, d), "square": (n,), "neurons": (n, d + 1)}
        if self.too_wide is None:
            shapes["gram"] = (n, d, d)
        sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name, shape in shapes.items()}
        return {"n": torch.zeros(n, dtype=torch.int64, device=device), **sums}


def neuron_residuals(x: Float[Tensor, "rows d_in"], scale: RowScale) -> Float[Tensor, " d_in_plus_1"]:
    """Return the sum over rows of what is left of |x - mean|^2 with the 0, 1, ... d_in farthest features of each."""
    centred = x - scale.mean
    distance = torch.where(scale.std > 0, centred.abs() / scale.std, -1.0)
    squares = centred.square().gather(1, distance.argsort(dim=1, descending=True, stable=True))
    left = squares.sum(0).flip(0).cumsum(0).flip(0)
    return torch.cat([left, left.new_zeros(1)])


def _scatter(rows: dict[str, Tensor], centre: Float[Tensor, " d_in"]) -> Float[Tensor, "d_in d_in"]:
    """Return the sum of (x - centre) (x - centre)^T over rows."""
    cross = torch.outer(rows["total"], centre)
    return rows["gram"] - cross - cross.T + rows["n"] * torch.outer(centre, centre)


def _variance(rows: dict[str, Tensor]) -> Tensor:
    """Return the sum of |x - mean|^2 over rows, where the mean is theirs."""
    return rows["square"] - rows["total"].square().sum() / rows["n"]


def of_fvu(name: str) -> Callable[[float], float] | None:
    """Return the function of the fvu that a registered score is; None for a score that is not one."""
    if name not in {metric.name for metric in measured_on("sae")}:
        return None
    found: Callable[[float], float] | None = getattr(load_metrics("sae", [name])[0], "of_fvu", None)
    return found
