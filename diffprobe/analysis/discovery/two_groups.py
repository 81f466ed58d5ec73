"""Whether the samples form two groups along a component: a mixture of two normal distributions against one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

_STARTS = (0.02, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.98)
"""Quantiles at which the samples are split for the start of the expectation-maximisation."""
_ITERATIONS = 200
_TOLERANCE = 1e-7
_LEAST_VARIANCE = 1e-3
"""Of a group, as share of that of all samples: without a bound, a group of one sample has infinite likelihood."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TwoGroups:
    """Two groups of samples along one component."""

    evidence: float
    """By how much the Bayesian information criterion favours two groups: that of one normal distribution minus that of
    a mixture of two; above 10 is strong."""
    separation: float
    """Ashman's D: distance of both means in units of their root mean square standard deviation; the groups are clearly
    apart from 2 on (Ashman, Bird and Zepf 1994, The Astronomical Journal)."""
    frequency: float
    """Share of the samples in the smaller group, 0..0.5."""
    smaller: Bool[np.ndarray, " samples"]
    """Which samples are in the smaller group."""
    is_positive: bool
    """Whether the smaller group is the one with the larger scores."""

    @property
    def distinctiveness(self) -> float:
        """Share of the samples that the boundary separates beyond chance, 0..1.

        The total variation distance of two normal distributions as far apart as these, with equal standard deviation.
        """
        from math import erf

        return erf(self.separation / 2**1.5)

    @property
    def rarity(self) -> float:
        """Distinctiveness times one minus the frequency, 0..1: large for a clearly separate and rare group."""
        return self.distinctiveness * (1 - self.frequency)

    def are_apart(self, *, least_evidence: float = 10.0, least_separation: float = 2.0, least_n: int = 5) -> bool:
        """Return whether two groups describe the samples, and both of them have members enough."""
        return (
            self.evidence >= least_evidence
            and self.separation >= least_separation
            and int(self.smaller.sum()) >= least_n
        )


def two_groups(scores: Float64[np.ndarray, "samples components"]) -> list[TwoGroups]:
    """Fit a mixture of two normal distributions to each component, by expectation-maximisation.

    Several starts that split the samples at fixed quantiles find small groups too, without random numbers.

    Args:
        scores: finite, with a variance above 0.
    """
    return [_fit(column) for column in np.asarray(scores, dtype=np.float64).T]


def _fit(scores: Float64[np.ndarray, " samples"]) -> TwoGroups:
    n, variance = len(scores), float(scores.var())
    weights, means, variances = _starts(scores)
    likelihood = np.full(len(weights), -np.inf)
    for _ in range(_ITERATIONS):
        logs = np.log(weights)[:, :, None] - 0.5 * (
            np.log(2 * np.pi * variances)[:, :, None] + (scores - means[:, :, None]) ** 2 / variances[:, :, None]
        )
        total = np.logaddexp(logs[:, 0], logs[:, 1])
        shares = np.exp(logs - total[:, None])
        before, likelihood = likelihood, total.sum(1)
        if (likelihood - before <= _TOLERANCE * n).all():
            break
        counts = np.maximum(shares.sum(2), 1e-12)
        weights = counts / n
        means = (shares @ scores) / counts
        spread = (shares * (scores - means[:, :, None]) ** 2).sum(2) / counts
        variances = np.maximum(spread, _LEAST_VARIANCE * variance)
    best = int(np.argmax(likelihood))
    one = -0.5 * n * (float(np.log(2 * np.pi * variance)) + 1)
    evidence = 2 * (float(likelihood[best]) - one) - 3 * float(np.log(n))
    low, high = means[best]
    upper = int(high >= low)
    in_upper = shares[best, upper] > 0.5
    # a wide group has the larger density on both sides of a narrow one: groups are the two sides of one boundary
    boundary = _boundary(scores, in_upper, float(min(low, high)), float(max(low, high)))
    above = scores > boundary
    is_positive = 2 * int(above.sum()) <= n
    smaller = above if is_positive else ~above
    return TwoGroups(
        evidence=evidence, separation=float(abs(high - low) / np.sqrt(variances[best].mean())),
        frequency=float(smaller.mean()), smaller=smaller, is_positive=is_positive,
    )  # fmt: skip


def _starts(scores: Float64[np.ndarray, " samples"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return weights, means and variances, each of shape (starts, 2)."""
    ordered, n = np.sort(scores), len(scores)
    found = []
    for quantile in _STARTS:
        place = min(max(int(round(quantile * n)), 1), n - 1)
        parts = (ordered[:place], ordered[place:])
        found.append([(len(part) / n, part.mean(), max(part.var(), 0.05 * scores.var())) for part in parts])
    return tuple(np.moveaxis(np.array(found), 2, 0))  # type: ignore[return-value]


def _boundary(scores: Float64[np.ndarray, " samples"], in_upper: np.ndarray, low: float, high: float) -> float:
    """Return the score between both means at which the likelier group changes."""
    between = (scores >= low) & (scores <= high)
    lower = scores[between & ~in_upper]
    return float(lower.max()) if len(lower) else low
