"""Statistics of the training set that sparse autoencoders need before their first step, from one pass over it.

Moments and chosen rows; features with NaN or infinity are refused. `SparseAutoencoderModule.begin` reads them.
"""

from collections.abc import Sequence

import torch

from diffprobe.core.errors import NonFinite
from diffprobe.features.batch import FeatureBatch, RowValues
from diffprobe.metrics.moments import RunningMoments
from diffprobe.training.sae_rows import ChosenRows, rows_of


class FirstPass:
    """Mean and variance of the rows of some cells, and rows chosen by seed; for any number of autoencoders.

    Each autoencoder of a bank gets bit for bit the statistics that it would get alone.

    Args:
        cells: names of the cells.
        d_in: width of a row.
        device: device of the rows.
        by_cell: whether to sum the rows of each cell too.
    """

    def __init__(self, cells: Sequence[str], d_in: int, device: torch.device, *, by_cell: bool = False) -> None:
        self.cells = tuple(cells)
        self.moments = RunningMoments(d_in).to(device)
        self.of_cells = tuple(RunningMoments(d_in).to(device) for _ in self.cells) if by_cell else ()
        self._chosen: dict[tuple[int, int], ChosenRows] = {}

    def choose(self, n: int, *, seed: int) -> ChosenRows:
        """Return the n rows that `seed` chooses, filled during the pass. Call it before the pass begins."""
        return self._chosen.setdefault((n, seed), ChosenRows(n, seed=seed))

    def update(self, batch: FeatureBatch) -> None:
        """Add a batch. Raises: NonFinite, naming cell and sample."""
        rows = rows_of(batch, self.cells)
        check_finite(rows, batch, self.cells)
        self.moments.update(rows.x)
        for i, moments in enumerate(self.of_cells):
            moments.update(rows.x[rows.group == i])
        for chosen in self._chosen.values():
            chosen.update(rows.x, batch.keys, rows)


def check_finite(rows: RowValues, batch: FeatureBatch, cells: Sequence[str]) -> None:
    """Refuse features with NaN or infinity. Raises: NonFinite, naming cell and first sample."""
    bad = ~torch.isfinite(rows.x).all(1)
    if not bad.any():
        return
    group = rows.group[bad][0]
    samples = rows.sample[bad & (rows.group == group)].unique()
    key = batch.keys[int(samples[0])]
    raise NonFinite(f"cell '{cells[int(group)]}' has NaN or infinity in {len(samples)} samples, the first is '{key}'.")
