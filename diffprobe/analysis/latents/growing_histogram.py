"""Histograms of positive values in one pass, one per latent, whose range grows with the largest value.

The end of a histogram is a power of two. When a larger value arrives, the end doubles and bins are joined in pairs, so
the counts are those of a second pass over the same values with the final bins.
"""

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError

_UNSET = -(10**6)
"""Exponent of a histogram without values: below that of any float."""


class GrowingHistograms:
    """Counts of positive values in equal bins from 0, per latent.

    The counts depend neither on the order of the values nor on their split into batches and processes. Memory grows
    with n_latents x n_bins.

    Args:
        n_latents: number of histograms.
        n_bins: bins of each, an even number of at least 2.

    >>> found = GrowingHistograms(n_latents=1, n_bins=4)
    >>> found.update(np.array([0, 0, 0]), np.array([0.5, 3.0, 1.0]))
    >>> found.of(0)
    ([1, 1, 0, 1], 4.0)
    """

    def __init__(self, n_latents: int, n_bins: int = 32) -> None:
        if n_latents < 1 or n_bins < 2 or n_bins % 2:
            raise ConfigError(
                f"histograms: n_latents={n_latents}, n_bins={n_bins}; allowed: at least one latent, an even number of "
                "bins."
            )
        self.n_bins = n_bins
        self._counts = np.zeros((n_latents, n_bins), dtype=np.int64)
        self._exponent = np.full(n_latents, _UNSET)

    def update(self, latent: NDArray[np.int64], value: NDArray[np.float64]) -> None:
        """Count values.

        Args:
            latent: the histogram of each value, (values,).
            value: finite, above 0, (values,).
        """
        if not len(latent):
            return
        largest = np.full(len(self._exponent), _UNSET)
        np.maximum.at(largest, latent, np.frexp(value)[1])  # value < 2**exponent
        self._grow(largest)
        place = np.floor(np.ldexp(value, -self._exponent[latent]) * self.n_bins).astype(np.int64)
        np.add.at(self._counts, (latent, place), 1)

    def merge(self, other: "GrowingHistograms") -> None:
        """Add the counts of other values. Raises: ConfigError for histograms of another size."""
        if self._counts.shape != other._counts.shape:
            raise ConfigError(
                "histograms of different sizes cannot be merged.",
                f"n_latents x n_bins: {other._counts.shape} and {self._counts.shape}",
            )
        self._grow(other._exponent)
        theirs = _joined(other._counts, self._exponent - other._exponent)
        self._counts += theirs

    def of(self, latent: int) -> tuple[list[int], float]:
        """Return counts and end of one histogram, without the empty bins at its end; no counts and 0 without values."""
        filled = np.flatnonzero(self._counts[latent])
        if not len(filled):
            return [], 0.0
        n = int(filled[-1]) + 1
        return self._counts[latent, :n].tolist(), float(np.ldexp(n / self.n_bins, int(self._exponent[latent])))

    def _grow(self, exponent: NDArray[np.int64]) -> None:
        """Raise the ends to at least the given powers of two."""
        target = np.maximum(self._exponent, exponent)
        self._counts = _joined(self._counts, target - self._exponent)
        self._exponent = target


def _joined(counts: NDArray[np.int64], doublings: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the counts of histograms whose ends are doubled some times."""
    found, left = counts.copy(), np.where(counts.any(1), doublings, 0)
    n_bins = counts.shape[1]
    found[left >= 64, 0] = found[left >= 64].sum(1)  # all of it is in the first bin; the others are cleared below
    found[left >= 64, 1:] = 0
    left[left >= 64] = 0
    while (rows := np.flatnonzero(left)).size:
        joined = found[rows].reshape(len(rows), n_bins // 2, 2).sum(2)
        found[rows] = 0
        found[rows, : n_bins // 2] = joined
        left[rows] -= 1
    return found
