"""Rates and shares read by a classifier that errs, corrected by its confusion on a validation sample.

Two values: Rogan and Gladen, American Journal of Epidemiology 107 (1978), 71-76. Several values: the inverse of the
confusion matrix, then the nearest point (least squares) of the simplex, since the inverse can leave it. Intervals draw
the validation sample and the read images anew, both from Dirichlet distributions at the counts plus one half: the
Bayesian bootstrap of Rubin (Annals of Statistics 9, 1981) with the half count of Jeffreys. A plain bootstrap has an
interval of width 0 where no image has a value, which planted rates of 0.02 with 100 images often give.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics.bootstrap import check_settings
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite, UninformativeReader

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HALF_COUNT = 0.5
"""Added to each count before rates are drawn."""
_SMALLEST_DETERMINANT = 1e-6
"""Determinant of the rates of a confusion below which its inverse is not used."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CorrectedShares:
    """Shares of the values of an attribute, corrected for the reader's errors, with intervals.

    Attributes:
        read: shares as the reader gives them, float64 (values,).
        corrected: float64 (values,), in the simplex.
        unprojected: before the projection on the simplex, float64 (values,); its mean over samples is the truth, so
            slopes and mean errors are those of these.
        low, high: ends of the interval of each share, float64 (values,).
        draws: unprojected shares of each resample, float64 (resamples, values), NaN where they are not defined.
        n_clipped: resamples in which the inverse left the simplex.
        n_undefined: resamples left out, since the drawn confusion separates no values.
        level: nominal coverage.
    """

    read: Floats
    corrected: Floats
    unprojected: Floats
    low: Floats
    high: Floats
    draws: Floats
    n_clipped: int
    n_undefined: int
    level: float


def rogan_gladen(read: float, sensitivity: float, specificity: float) -> float:
    """Return the share of positives behind a read share, clipped to 0..1.

    Args:
        read: share of samples that are read as positive.
        sensitivity: P(read positive | positive).
        specificity: P(read negative | negative).
    Raises: NonFinite, ConfigError for a number outside 0..1; UninformativeReader if sensitivity + specificity <= 1.

    >>> round(rogan_gladen(0.5, 0.9, 0.8), 4)
    0.4286
    """
    for name, value in (("read", read), ("sensitivity", sensitivity), ("specificity", specificity)):
        if not np.isfinite(value):
            raise NonFinite(f"Rogan-Gladen: {name} is {value}.")
        if not 0 <= value <= 1:
            raise ConfigError(f"Rogan-Gladen: {name}={value} is out of range: 0 to 1.")
    if sensitivity + specificity <= 1:
        raise UninformativeReader(
            f"sensitivity {sensitivity:.3g} + specificity {specificity:.3g} <= 1: what is read does not depend on the "
            "truth, or is its reverse.",
            "a rate cannot be corrected by such a reader",
            fix="a better reader, or a larger validation sample",
        )
    return float(np.clip((read + specificity - 1) / (sensitivity + specificity - 1), 0, 1))


def onto_simplex(shares: Floats) -> Floats:
    """Return the nearest points of the simplex (not negative, sum 1) by squared distance.

    Args:
        shares: float64 (..., values).
    Source: Duchi et al., "Efficient projections onto the l1-ball", ICML 2008, figure 1.

    >>> onto_simplex(np.array([1.2, -0.2])).tolist()
    [1.0, 0.0]
    """
    ordered = -np.sort(-shares, axis=-1)
    places = np.arange(1, shares.shape[-1] + 1)
    excess = (np.cumsum(ordered, axis=-1) - 1) / places
    n_kept = (ordered > excess).sum(axis=-1, keepdims=True)
    return np.maximum(shares - np.take_along_axis(excess, n_kept - 1, axis=-1), 0)


def confusion_counts(true: Ints, read: Ints, n_values: int) -> Ints:
    """Count a validation sample by true (rows) and read value (columns), int64 (values, values).

    Raises: ConfigError for other numbers of labels, or codes out of range.
    """
    if true.shape != read.shape or true.ndim != 1:
        raise ConfigError(f"a confusion needs as many true as read labels: {true.shape} and {read.shape}.")
    for labels in (true, read):
        if len(labels) and not (0 <= labels.min() and labels.max() < n_values):
            raise ConfigError(f"a label is out of range: allowed 0 to {n_values - 1}.")
    return np.bincount(true * n_values + read, minlength=n_values**2).reshape(n_values, n_values)


def corrected_shares(
    read: Ints, confusion: Ints, *, n_resamples: int = 2000, level: float = 0.95, seed: int = 0, stream: int = 0
) -> CorrectedShares:
    """Correct the shares of read values, with intervals that vary the validation sample and the images.

    The reader's errors are taken to depend on the true value alone, and images to be independent.

    Args:
        read: counts of the read values, int64 (values,).
        confusion: counts of the validation sample by true and read value, int64 (values, values).
        n_resamples: draws behind the interval.
        level: nominal coverage.
        seed: of the draws.
        stream: number of the rate; rates of one seed and several streams share the draws of the confusion, so that
            functions of several rates have intervals.

    Raises: EmptyClass without images, or for a value that the validation sample lacks; UninformativeReader if two
        values cannot be separated (for two values: sensitivity + specificity <= 1), or in more than half of the
        draws; ConfigError for other shapes or negative counts.
    """
    check_settings(level, n_resamples)
    n_values = len(read)
    if confusion.shape != (n_values, n_values) or n_values < 2 or read.min() < 0 or confusion.min() < 0:
        raise ConfigError(f"{n_values} read values need a confusion of as many, without negative counts.",
                          f"given: shape {confusion.shape}")  # fmt: skip
    if read.sum() == 0:
        raise EmptyClass("there is no image whose values could be counted.")
    absent = np.flatnonzero(confusion.sum(1) == 0)
    if len(absent):
        raise EmptyClass(
            f"the validation sample has no image of value number {absent[0]}, so errors on it are not known.",
            fix="a larger validation sample",
        )
    shares = read / read.sum()
    rates = confusion / confusion.sum(1, keepdims=True)
    if not _separates(rates[None])[0]:
        raise UninformativeReader(
            "the confusion of the reader cannot be inverted: what is read does not separate the values.",
            *([f"sensitivity {rates[1, 1]:.3g} + specificity {rates[0, 0]:.3g} <= 1"] if n_values == 2 else []),
            fix="a better reader, or a larger validation sample",
        )
    unprojected = _solve(rates[None], shares[None])[0]
    corrected = onto_simplex(unprojected)
    drawn_shares = np.random.default_rng([seed, 1, stream]).dirichlet(read + HALF_COUNT, size=n_resamples)
    generator = np.random.default_rng([seed, 0])
    drawn_rates = np.stack([generator.dirichlet(row + HALF_COUNT, size=n_resamples) for row in confusion], axis=1)
    defined = _separates(drawn_rates)
    if defined.sum() * 2 < n_resamples:
        raise UninformativeReader(
            f"the reader separates no values in {n_resamples - int(defined.sum())} of {n_resamples} draws.",
            fix="a larger validation sample",
        )
    solved = _solve(drawn_rates[defined], drawn_shares[defined])
    draws = np.full((n_resamples, n_values), np.nan)
    draws[defined] = solved
    low, high = np.quantile(onto_simplex(solved), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return CorrectedShares(
        read=shares, corrected=corrected, unprojected=unprojected, low=np.minimum(low, corrected),
        high=np.maximum(high, corrected), draws=draws, n_clipped=int((solved.min(1) < 0).sum()),
        n_undefined=int((~defined).sum()), level=level,
    )  # fmt: skip


def _separates(rates: Floats) -> NDArray[np.bool_]:
    """Return whether confusions can be inverted; of two values, whether sensitivity + specificity > 1."""
    if rates.shape[-1] == 2:
        return np.asarray(rates[:, 0, 0] + rates[:, 1, 1] > 1 + _SMALLEST_DETERMINANT)
    return np.asarray(np.linalg.det(rates) > _SMALLEST_DETERMINANT)


def _solve(rates: Floats, shares: Floats) -> Floats:
    """Return x with x @ rates = shares, for each of some confusions; not clipped."""
    return np.asarray(np.linalg.solve(rates.transpose(0, 2, 1), shares[..., None])[..., 0], dtype=np.float64)
