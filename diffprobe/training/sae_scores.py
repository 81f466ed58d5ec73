"""What is measured of a sparse autoencoder on one split, over all rows and for each cell: fvu, L0, dead fraction."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.metrics.fvu import Fvu
from diffprobe.metrics.grouped import Grouped
from diffprobe.metrics.sparsity import LatentUse
from diffprobe.probes.sae.contract import Code
from diffprobe.training.rows import Rows


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
        self.fvu, self.use = Fvu(d_in), LatentUse(n_latents)
        if self.cells:
            self.cell_fvu, self.cell_use = Grouped(Fvu(d_in), self.cells), Grouped(LatentUse(n_latents), self.cells)

    def update(self, rows: Rows, x_hat: Float[Tensor, "rows d_in"], code: Code) -> None:
        """Add rows with their reconstructions and codes."""
        self.fvu.update(rows.x, x_hat)
        self.use.update(code.values, code.indices)
        for i, cell in enumerate(self.cells):
            mine = rows.group == i
            self.cell_fvu.update(cell, rows.x[mine], x_hat[mine])
            self.cell_use.update(cell, code.values[mine], code.indices[mine])

    def compute(self) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return the numbers over all rows and of each cell, with their counts of rows `n`; and forget the rows."""
        whole = _scores(self.fvu, self.use)
        by_cell = {cell: _scores(self.cell_fvu[cell], self.cell_use[cell]) for cell in self.cells}
        if self.cells:
            self.cell_fvu.reset()
            self.cell_use.reset()
        return whole, by_cell


def _scores(fvu: Fvu, use: LatentUse) -> dict[str, float]:
    scores = {"fvu": float(fvu.compute())}
    scores["explained_variance"] = 1 - scores["fvu"]
    used = use.compute()
    scores |= {name: float(used[name]) for name in ("l0", "dead_fraction")}
    with fvu.sync_context():
        scores["n"] = int(fvu.n)
    fvu.reset()
    use.reset()
    return scores
