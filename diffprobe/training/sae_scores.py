"""What is measured of a sparse autoencoder on one split, over all rows and for each cell.

Reconstruction (fvu), use of the latents (L0, dead, dense, the histogram of their frequencies), and gamma of the rows.
Next in the flow: `sae_records.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.metrics.density_histogram import DensityHistogram, density_histogram
from diffprobe.metrics.fvu import Fvu
from diffprobe.metrics.grouped import Grouped
from diffprobe.metrics.mean_std_ratio import MeanStdRatio
from diffprobe.metrics.sparsity import LatentUsage
from diffprobe.probes.sae.types import Code
from diffprobe.training.sae_rows import Rows


class Scores(NamedTuple):
    """What was measured on some rows."""

    values: dict[str, float]
    """fvu, explained_variance, l0, dead_fraction (never active on these rows), dense_fraction, gamma."""
    n: int
    """Rows."""
    density: DensityHistogram
    """Latents by the share of the rows on which they were active."""


class SplitScores(nn.Module):
    """Metrics of one split over all rows; where there are several cells, of the rows of each cell too.

    Args:
        d_in: width of a row.
        n_latents: number of latents.
        cells: names of the cells, in the order of `Rows.group`.
    """

    def __init__(self, d_in: int, n_latents: int, cells: Sequence[str]) -> None:
        super().__init__()
        self.cells = tuple(cells) if len(cells) > 1 else ()
        self.fvu, self.use, self.spread = Fvu(d_in), LatentUsage(n_latents), MeanStdRatio(d_in)
        if self.cells:
            self.cell_fvu, self.cell_use = Grouped(Fvu(d_in), self.cells), Grouped(LatentUsage(n_latents), self.cells)
            self.cell_spread = Grouped(MeanStdRatio(d_in), self.cells)

    def update(self, rows: Rows, x_hat: Float[Tensor, "rows d_in"], code: Code) -> None:
        """Add rows with their reconstructions and codes."""
        self.fvu.update(rows.x, x_hat)
        self.use.update(code.values, code.indices)
        self.spread.update(rows.x)
        for i, cell in enumerate(self.cells):
            mine = rows.group == i
            x = rows.x[mine]
            self.cell_fvu.update(cell, x, x_hat[mine])
            self.cell_use.update(cell, code.values[mine], code.indices[mine])
            self.cell_spread.update(cell, x)

    def compute(self) -> tuple[Scores, dict[str, Scores]]:
        """Return what was measured over all rows and of each cell; and forget the rows.

        Raises: NonFinite for rows that do not vary.
        """
        whole, by_cell = _scores(self.fvu, self.use, self.spread), {}
        for cell in self.cells:
            by_cell[cell] = _scores(self.cell_fvu[cell], self.cell_use[cell], self.cell_spread[cell])
        for part in self.children():
            part.reset()  # type: ignore[operator]
        return whole, by_cell


def _scores(fvu: Fvu, use: LatentUsage, spread: MeanStdRatio) -> Scores:
    values = {"fvu": float(fvu.compute())}
    values["explained_variance"] = 1 - values["fvu"]
    used = use.compute()
    values |= {name: float(used[name]) for name in ("l0", "dead_fraction")}
    with use.sync_context():
        n, density = int(use.n), density_histogram(use.active, int(use.n))
    values |= {"dense_fraction": density.dense_fraction, "gamma": float(spread.compute())}
    return Scores(values, n, density)
