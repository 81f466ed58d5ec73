"""Two-way bootstrap: rows and columns of a crossed design are resampled independently, for example templates and seeds.

Cells of one row are not independent, and neither are cells of one column: an interval from resampling cells would be
too narrow. Resampling both is the pigeonhole bootstrap (Owen 2007, The pigeonhole bootstrap, Annals of Applied
Statistics). Its variance is that of rows plus that of columns, and up to three times that of single cells: it is at
least as large as it has to be.
"""

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics.bootstrap import Interval, Method, check_settings, ends
from diffprobe.core.errors import ConfigError
from diffprobe.core.groups import require_groups

Floats = NDArray[np.float64]
_BLOCK = 8_000_000
"""Largest number of weights that are held at once."""


class TwoWayResamples:
    """Resamples of rows and columns, drawn once, for many statistics of the same design.

    Args:
        n_rows, n_columns: size of the design, at least 2 each.
        n_resamples: number of resamples.
        seed: seed of the resampling.

    Raises: TooFewGroups for a single row or column; ConfigError for no resample.

    >>> values = np.add.outer(np.arange(20.0), np.arange(20.0))
    >>> resamples = TwoWayResamples(20, 20)
    >>> interval = resamples.interval(values.mean(), resamples.means(values))
    >>> interval.low < interval.estimate == 19.0 < interval.high
    True
    """

    def __init__(self, n_rows: int, n_columns: int, *, n_resamples: int = 1000, seed: int = 0) -> None:
        check_settings(0.5, n_resamples)
        for n, what in ((n_rows, "rows"), (n_columns, "columns")):
            require_groups(n, n_rows * n_columns, what=f"two-way bootstrap, {what}")
        generator = np.random.default_rng(seed)
        self.shape, self.n_resamples = (n_rows, n_columns), n_resamples
        self._rows = generator.multinomial(n_rows, np.full(n_rows, 1 / n_rows), size=n_resamples).astype(np.float64)
        self._columns = generator.multinomial(n_columns, np.full(n_columns, 1 / n_columns), size=n_resamples).astype(
            np.float64
        )

    def means(self, values: Floats) -> Floats:
        """Return the mean over the design in each resample.

        Args:
            values: one number per cell of the design, shape (..., rows, columns).

        Returns: shape (resamples, ...).
        Raises: ConfigError for another design.
        """
        if values.shape[-2:] != self.shape:
            raise ConfigError(f"two-way bootstrap: values of {values.shape[-2:]} for a design of {self.shape}.")
        cells = self.shape[0] * self.shape[1]
        flat = np.ascontiguousarray(values.reshape(-1, cells), dtype=np.float64)
        found, block = np.empty((self.n_resamples, len(flat))), max(1, _BLOCK // cells)
        for start in range(0, self.n_resamples, block):
            rows, columns = self._rows[start : start + block], self._columns[start : start + block]
            weights = (rows[:, :, None] * columns[:, None, :]).reshape(len(rows), cells) / cells
            found[start : start + block] = weights @ flat.T
        return found.reshape(self.n_resamples, *values.shape[:-2])

    def interval(
        self, estimate: float, values: Floats, *, level: float = 0.95, method: Method = "expanded"
    ) -> Interval:
        """Return the interval of a statistic from its values in the resamples.

        Args:
            estimate: the statistic of the whole design.
            values: shape (resamples,), NaN where it is not defined.
            level: nominal coverage, between 0 and 1.
            method: as in `bootstrap_interval`; "expanded" takes the smaller number of rows and columns.

        Raises: ConfigError for a level outside (0, 1); EmptyClass if undefined in more than half of the resamples.
        """
        check_settings(level, self.n_resamples)
        n = min(self.shape)
        low, high = ends(values, n, level, method)
        return Interval(
            estimate=float(estimate), low=low, high=high, level=level, n_clusters=n, n_resamples=self.n_resamples,
            n_undefined=int(np.isnan(values).sum()), method=method,
        )  # fmt: skip
