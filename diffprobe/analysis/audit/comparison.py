"""Associations and rates set against other numbers: a reference, the rates of images, another axis."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from diffprobe.analysis.certification.intervals import rank_correlation
from diffprobe.analysis.statistics import Interval, Null, bootstrap_interval
from diffprobe.core.errors import ConfigError

Floats = Float64[np.ndarray, " subjects"]
FEWEST = 4
"""Fewest subjects of a rank correlation."""


@dataclass(frozen=True, kw_only=True)
class RankAgreement:
    """Rank correlation of two numbers per subject."""

    interval: Interval
    """Spearman's correlation with its interval; subjects are resampled."""
    null: Null
    """Subjects permuted; two-sided."""


def rank_agreement(
    one: Floats,
    other: Floats,
    *,
    n_resamples: int = 1000,
    n_permutations: int = 9999,
    level: float = 0.95,
    seed: int = 0,
) -> RankAgreement:
    """Return Spearman's correlation over subjects, with an interval and its null distribution.

    Raises: ConfigError for fewer than `FEWEST` subjects or other numbers of them.
    """
    if len(one) != len(other) or len(one) < FEWEST:
        raise ConfigError(
            f"rank correlation of {len(one)} and {len(other)} subjects: as many of each, at least {FEWEST}."
        )
    interval = bootstrap_interval(
        lambda rows: rank_correlation(one[rows], other[rows]), range(len(one)), n_resamples=n_resamples, level=level,
        seed=seed, method="expanded",
    )  # fmt: skip
    generator = np.random.default_rng(seed)
    drawn = np.array([abs(rank_correlation(one, generator.permutation(other))) for _ in range(n_permutations)])
    null = Null(observed=abs(interval.estimate), values=drawn, n_permutations=n_permutations)
    return RankAgreement(interval=interval, null=null)


@dataclass(frozen=True, kw_only=True, eq=False)
class Amplification:
    """Generated minus reference rate of each subject: positive where the model shows the positive end more often."""

    difference: Floats
    """Rate minus reference, -1..1."""
    low: Floats | None
    """Lower ends: those of the rate minus the reference, which is taken as known."""
    high: Floats | None
    """Upper ends."""
    away: np.ndarray
    """Whether the rate is further from 0.5 than the reference, on the same side: the skew is amplified."""


def amplification(rate: Floats, low: Floats | None, high: Floats | None, reference: Floats) -> Amplification:
    """Compare rates with reference rates of the same subjects. Raises: ConfigError for reference rates outside 0..1."""
    if not ((reference >= 0) & (reference <= 1)).all():
        raise ConfigError(f"reference rates from {reference.min():g} to {reference.max():g}; needed: 0..1.")
    skew, known = rate - 0.5, reference - 0.5
    return Amplification(
        difference=rate - reference,
        low=None if low is None else low - reference,
        high=None if high is None else high - reference,
        away=(np.sign(skew) * np.sign(known) >= 0) & (np.abs(skew) > np.abs(known)),
    )
