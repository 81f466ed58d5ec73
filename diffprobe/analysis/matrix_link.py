"""How far one matrix over classes follows another: Spearman over pairs of different classes, with p and interval.

The pairs of a class are not independent, so classes are permuted and resampled, not pairs: p is that of Mantel's test
(Cancer Research 1967), which exchanges rows and columns of one matrix together; the interval resamples classes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.probes.null_distribution import Null

Matrix = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class MatrixLink:
    """A rank correlation of two matrices.

    Attributes:
        null: the correlation, -1 to 1, among those of permuted classes.
        interval: over resampled classes; None if it is defined in fewer than half of the resamples.
        level: its coverage.
    """

    null: Null
    interval: tuple[float, float] | None
    level: float


def matrix_link(
    one: Matrix,
    other: Matrix,
    *,
    n_permutations: int = 2000,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> MatrixLink:
    """Correlate two matrices over the same classes, without their diagonals.

    Args:
        one, other: float64 (classes, classes); the orders of their numbers count.
        n_permutations, n_resamples: of the classes.
        level: coverage of the interval, percentiles.
        seed: of both.
    Raises: ConfigError for fewer than 3 classes or other shapes; EmptyClass if all pairs of a matrix are equal.
    """
    n = len(one)
    if n < 3 or one.shape != (n, n) or other.shape != (n, n):
        raise ConfigError(f"matrices of shapes {one.shape} and {other.shape}: a link needs two of at least 3 classes.")
    observed = _spearman(one, other, np.arange(n), np.arange(n))
    if np.isnan(observed):
        raise EmptyClass("all pairs of different classes are equal in one of the matrices; no rank can follow them.")
    draw = np.random.default_rng(seed)
    own = np.arange(n)
    permuted = np.array([_spearman(one, other, own, draw.permutation(n)) for _ in range(n_permutations)])
    null = Null(
        observed=observed, values=permuted[~np.isnan(permuted)], n_permutations=n_permutations,
        n_distinct=float(np.prod(np.arange(1, n + 1, dtype=float))),
    )  # fmt: skip
    resampled = np.array([_resampled(one, other, draw.integers(n, size=n)) for _ in range(n_resamples)])
    defined = resampled[~np.isnan(resampled)]
    interval = None
    if 2 * len(defined) >= n_resamples:
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
        interval = (float(low), float(high))
    return MatrixLink(null=null, interval=interval, level=level)


def _spearman(one: Matrix, other: Matrix, rows: NDArray[np.int64], permuted: NDArray[np.int64]) -> float:
    """Return the correlation over pairs of different classes, the classes of `other` permuted; NaN where undefined."""
    pairs = rows[:, None] != rows
    return _of_pairs(one[np.ix_(rows, rows)][pairs], other[np.ix_(permuted, permuted)][pairs])


def _resampled(one: Matrix, other: Matrix, rows: NDArray[np.int64]) -> float:
    return _spearman(one, other, rows, rows)


def _of_pairs(a: Matrix, b: Matrix) -> float:
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
