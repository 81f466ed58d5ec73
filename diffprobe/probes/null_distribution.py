"""The place of a number among those that chance gives: quantile, one-sided p, and the smallest p that could have been.

NumPy only.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Null:
    """What a statistic is by chance, for labels or directions drawn at random, beside what was observed."""

    observed: float
    """The statistic of the true labels."""
    values: NDArray[np.float64]
    """The statistic of each permutation, or of each random direction, in which it is defined."""
    n_permutations: int
    """Permutations or directions drawn."""
    n_distinct: float = math.inf
    """How many different ones there are, as the groups allow; infinite where they exceed what a float holds."""
    n_between: int = 0
    """Groups whose label is constant, permuted between each other."""
    n_within: int = 0
    """Groups in which labels vary and are permuted."""
    higher_is_better: bool = True
    """Which side counts as extreme."""

    @property
    def n_undefined(self) -> int:
        """Permutations in which the statistic is not defined; they are left out."""
        return self.n_permutations - len(self.values)

    @property
    def smallest_p(self) -> float:
        """The smallest p that could have been: bounded by the permutations drawn and by those that exist."""
        return max(1 / (1 + len(self.values)), 1 / self.n_distinct)

    @property
    def p(self) -> float:
        """(1 + number of null values at least as extreme as observed) / (1 + number of null values); one-sided.

        Where fewer different permutations exist than were drawn, not below one over their number.
        """
        tolerance = 1e-12 * max(1.0, abs(self.observed))  # sums in another order
        gain = self.values - self.observed if self.higher_is_better else self.observed - self.values
        return max((1 + int((gain >= -tolerance).sum())) / (1 + len(self.values)), self.smallest_p)

    @property
    def quantile(self) -> float:
        """The share of null values below the observed one, ties counted by half: 0..1."""
        return float(((self.values < self.observed) + 0.5 * (self.values == self.observed)).mean())

    @property
    def mean(self) -> float:
        """The mean of the null distribution."""
        return float(self.values.mean())

    def percentiles(self, *shares: float) -> list[float]:
        """Return percentiles of the null distribution, for shares in 0..1."""
        return [float(value) for value in np.quantile(self.values, shares)]

    def describe(self) -> dict[str, float | int]:
        """Return the distribution and the place of the observed value in it, as JSON values.

        Returns: p, smallest_p and quantile, 0..1; mean and percentile_95 of the null values, in the unit of the
            statistic (the 5th percentile as percentile_5 where lower is better); n, how many there are.
        """
        extreme = "percentile_95" if self.higher_is_better else "percentile_5"
        return {
            "p": self.p,
            "smallest_p": self.smallest_p,
            "quantile": self.quantile,
            "mean": self.mean,
            extreme: self.percentiles(0.95 if self.higher_is_better else 0.05)[0],
            "n": len(self.values),
        }
