"""The control `random_dictionary` of an autoencoder: random directions, as many as latents, with the same k."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from diffprobe.core.rng import derive_seed
from diffprobe.features.batch import RowValues
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.initialization import random_rows
from diffprobe.probes.sae.kernels.sparse_step import scan

MAX_WEIGHTS = 1 << 28
"""Largest number of weights of a random dictionary: 1 GiB in 32 bits."""
_SUMS = ("cross", "power", "spread")


class RandomDictionary:
    """Random unit rows, as many as the autoencoder has latents, about the mean of the training rows.

    Each row is coded by the k largest products with the dictionary, negative ones set to 0, and decoded by the same
    directions times one factor for all rows: that of least squares on the training rows. Nothing else is learned.

    Args:
        sae: the autoencoder.
        n_cells: number of cells.
        seed: seed of the run.
    """

    def __init__(self, sae: KSAE, n_cells: int, *, seed: int) -> None:
        self._shape, self._k, self._keeps_k = (sae.n_latents, sae.d_in), sae.k, sae.keeps_k
        self._n_cells, self._seed = n_cells, derive_seed("random_dictionary", seed)
        self._rows: Tensor | None = None
        self._running: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}

    @property
    def left_out(self) -> str | None:
        """Why there is none; None if there is."""
        if not self._keeps_k:
            return "the number of active latents is known only after the rows were scored"
        if (numbers := self._shape[0] * self._shape[1]) > MAX_WEIGHTS:
            return f"{numbers} weights, at most {MAX_WEIGHTS}"
        return None

    @torch.no_grad()
    def update(self, split: str, rows: RowValues, scaled: Tensor, mean: Tensor) -> None:
        """Add rows of a split.

        Args:
            split, rows: see `ReconstructionControls.update`.
            scaled: the rows in the unit of the autoencoder, (rows, d_in).
            mean: mean of the training rows in that unit, float64.
        """
        if self.left_out:
            return
        if self._rows is None:
            self._rows = random_rows(*self._shape, seed=self._seed).to(scaled)
        centred = scaled - mean.to(scaled)
        top, _ = scan(centred, self._rows, self._rows.new_zeros(len(self._rows)), k=self._k)
        weights = top.values.relu()
        decoded = F.embedding_bag(top.indices, self._rows, per_sample_weights=weights, mode="sum").double()
        exact = scaled.double() - mean
        parts = [(exact * decoded).sum(1), decoded.square().sum(1), exact.square().sum(1)]
        sums = self._running.setdefault(split, self._zeros(scaled.device))
        sums.index_add_(0, rows.group, torch.stack(parts, dim=1))

    def finish(self, split: str, total: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Add the sums of all processes and free the dictionary. Collective; see `ReconstructionControls.finish`."""
        if self.left_out is None:
            self._found[split] = total(self._running.pop(split, self._zeros(device))).cpu()
            self._rows = None

    def has(self, split: str) -> bool:
        """Return whether a split is finished."""
        return split in self._found

    def residual(self, split: str, place: int | None) -> float:
        """Return the squared error on a finished split, in the unit of the autoencoder; "train" is finished too.

        Args:
            split: the split.
            place: number of a cell; None for all rows.
        """
        cross, power, _ = self._found["train"].sum(0).tolist()
        factor = cross / power if power > 0 else 0.0
        found = self._found[split]
        cross, power, spread = (found.sum(0) if place is None else found[place]).tolist()
        return max(float(spread - 2 * factor * cross + factor**2 * power), 0.0)

    def _zeros(self, device: torch.device) -> Tensor:
        return torch.zeros(self._n_cells, len(_SUMS), dtype=torch.float64, device=device)
