"""Correction for many tests: Benjamini and Hochberg's false discovery rate, with the number of tests."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffprobe.core.errors import ConfigError, NonFinite


@dataclass(frozen=True, kw_only=True)
class Corrected:
    """Adjusted p-values, with the number of tests that they were adjusted for."""

    adjusted: tuple[float, ...]
    """The p-values adjusted, in the order given: below q, the expected share of false discoveries is at most q."""
    n_tests: int
    """Number of tests."""

    def found(self, rate: float = 0.05) -> tuple[bool, ...]:
        """Return which tests are discoveries at a false discovery rate, in 0..1."""
        return tuple(p <= rate for p in self.adjusted)


def benjamini_hochberg(p_values: Sequence[float]) -> Corrected:
    """Adjust p-values for their number (scipy.stats.false_discovery_control).

    The rate holds for independent tests and for those with positive dependence, such as cells of one network over the
    same samples.

    Raises: ConfigError for no test or a p outside 0..1; NonFinite for a p that is NaN.

    >>> benjamini_hochberg([0.01, 0.5]).adjusted
    (0.02, 0.5)
    """
    values = np.asarray(p_values, dtype=np.float64)
    if not len(values):
        raise ConfigError("Benjamini-Hochberg: no p-value.")
    if np.isnan(values).any():
        raise NonFinite(f"Benjamini-Hochberg: p-value {int(np.flatnonzero(np.isnan(values))[0])} is NaN.")
    if values.min() <= 0 or values.max() > 1:
        raise ConfigError(
            f"Benjamini-Hochberg: p-values from {values.min()} to {values.max()}; allowed: above 0, to 1."
        )
    from scipy.stats import false_discovery_control  # heavy

    return Corrected(adjusted=tuple(float(p) for p in false_discovery_control(values)), n_tests=len(values))
