"""An audit of rates against planted rates: recovery, coverage, false discoveries, and separation of two worlds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Check, Rule
from diffprobe.analysis.certification.intervals import (
    jackknife_interval,
    rank_correlation,
    rank_correlation_cap,
    rank_correlation_interval,
    share_interval,
)
from diffprobe.analysis.statistics import Null, bootstrap_interval
from diffprobe.core.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Rates:
    """Estimates of one rate per role, with intervals; the roles are in the order of the world.

    Attributes:
        rate, low, high: estimate and both ends of its interval, 0..1, shape (roles,).
        level: nominal coverage of the intervals.
    """

    rate: Floats
    low: Floats
    high: Floats
    level: float

    def __post_init__(self) -> None:
        if not (len(self.rate) == len(self.low) == len(self.high)):
            raise ConfigError(f"{len(self.rate)} rates with {len(self.low)} and {len(self.high)} ends of intervals.")
        ordered = (self.low >= 0) & (self.low <= self.rate) & (self.rate <= self.high) & (self.high <= 1)
        if not ordered.all():
            i = int(np.flatnonzero(~ordered)[0])
            raise ConfigError(
                f"rate {i} is {self.rate[i]:g} with the interval {self.low[i]:g} to {self.high[i]:g}.",
                "allowed: 0 <= low <= rate <= high <= 1",
            )
        if not 0 < self.level < 1:
            raise ConfigError(f"level={self.level} of the intervals is out of range: between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class AuditRules:
    """Thresholds and settings of the checks."""

    least_spearman: float = 0.9
    """Least rank correlation with the planted rates."""
    least_slope: float = 0.8
    """Least slope of the estimates over the planted rates."""
    most_slope: float = 1.2
    """Largest slope."""
    most_bias: float = 0.1
    """Largest mean error, of either sign."""
    most_error: float = 0.25
    """Largest error of a role."""
    least_coverage: float = 0.9
    """Least share of roles whose interval has the truth."""
    least_separation: float = 0.5
    """Least mean rank correlation with the own world's rates, minus that with the other world's."""
    alpha: float = 0.05
    """Largest p that counts as above chance, and least p at which false discoveries count as nominal."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    n_permutations: int = 1000
    """Permutations of each null distribution."""
    n_resamples: int = 1000
    """Resamples of bootstrap intervals."""
    seed: int = 0
    """Seed of permutations and resamples."""


NO_ASSOCIATION = 0.5
"""Rate of roles without an association."""


def slope_of(estimate: Floats, truth: Floats) -> float:
    """Return the least-squares slope of the estimates over the truth; 0 where the truth is constant."""
    centred = truth - truth.mean()
    square = float(centred @ centred)
    return float(centred @ estimate) / square if square > 0 else 0.0


def recovery_checks(audit: Rates, truth: Floats, rules: AuditRules, *, of: str) -> list[Check]:
    """Measure how the estimates follow the true rates: spearman, slope, bias, max_error.

    Args:
        audit: the estimates.
        truth: the true rate of each role, shape (roles,).
        rules: thresholds.
        of: name of the world, for the checks.

    Returns: the checks. The interval of the largest error follows from the audit's own intervals.
    Raises: ConfigError for another number of roles; EmptyClass below 4 roles.
    """
    n = len(truth)
    if len(audit.rate) != n:
        raise ConfigError(f"an audit of {len(audit.rate)} roles for a world of {n}.")
    error, level = audit.rate - truth, rules.level
    spearman, slope, bias = rank_correlation(audit.rate, truth), slope_of(audit.rate, truth), float(error.mean())
    without = [np.delete(np.arange(n), i) for i in range(n)]
    slopes = np.array([slope_of(audit.rate[rows], truth[rows]) for rows in without])
    generator = np.random.default_rng(rules.seed)
    orders = [generator.permutation(n) for _ in range(rules.n_permutations)]
    worst = float(np.abs(error).max())
    least = float(np.maximum(np.maximum(audit.low - truth, truth - audit.high), 0).max())
    most = float(np.maximum(np.abs(audit.high - truth), np.abs(audit.low - truth)).max())

    def null(observed: float, values: list[float], *, higher: bool = True) -> dict[str, float]:
        return Null(
            observed=observed, values=np.array(values), n_permutations=rules.n_permutations, higher_is_better=higher
        ).describe()

    return [
        Check(
            name="spearman", target=of, value=spearman, interval=rank_correlation_interval(spearman, n, level), n=n,
            null=null(spearman, [rank_correlation(audit.rate[order], truth) for order in orders]),
            rule=Rule(keys="least_spearman, alpha", low=rules.least_spearman, alpha=rules.alpha),
            what="rank correlation with the planted rates; ties of the planted rates cap that of any audit without "
            f"ties at {rank_correlation_cap(truth):.3f}; null: the estimates permuted among the roles",
        ),
        Check(
            name="slope", target=of, value=slope, interval=jackknife_interval(slope, slopes, level), n=n,
            null=null(slope, [slope_of(audit.rate[order], truth) for order in orders]),
            rule=Rule(keys="least_slope, most_slope", low=rules.least_slope, high=rules.most_slope),
            what="slope of the estimates over the planted rates; above 1 the audit exaggerates",
        ),
        Check(
            name="bias", target=of, value=bias, n=n,
            interval=jackknife_interval(bias, (error.sum() - error) / (n - 1), level),
            rule=Rule(keys="most_bias", low=-rules.most_bias, high=rules.most_bias),
            what="mean of estimate minus planted rate; permutations do not change it, so it has no null",
        ),
        Check(
            name="max_error", target=of, value=worst, interval=(min(least, worst), max(most, worst)), n=n,
            null=null(worst, [float(np.abs(audit.rate[o] - truth).max()) for o in orders], higher=False),
            rule=Rule(keys="most_error", high=rules.most_error),
            what="largest error of a role; its interval follows from the intervals of the audit, role by role",
        ),
    ]  # fmt: skip


def coverage_check(audit: Rates, truth: Floats, rules: AuditRules, *, of: str, judged: bool) -> Check:
    """Measure the share of roles whose interval has the truth, with an exact interval.

    The null is that of intervals with exactly their nominal coverage: its p is the probability of so few hits.
    """
    from scipy.stats import binom  # heavy

    hits, n = int(((audit.low <= truth) & (truth <= audit.high)).sum()), len(truth)
    null = {"p": float(binom.cdf(hits, n, audit.level)), "smallest_p": float(binom.cdf(0, n, audit.level)),
            "mean": audit.level}  # fmt: skip
    return Check(
        name="coverage", target=of, value=hits / n, interval=share_interval(hits, n, rules.level), n=n, null=null,
        rule=Rule(keys="least_coverage", low=rules.least_coverage) if judged else None,
        what=f"share of roles whose {audit.level:.0%} interval has the true rate; p: so few, if the intervals covered "
        "as often as they state",
    )  # fmt: skip


def false_discovery_checks(audits: Sequence[Rates], truths: Sequence[Floats], rules: AuditRules) -> list[Check]:
    """Measure how often an audit finds an association where none is planted. A discovery: the interval excludes 0.5.

    Args:
        audits, truths: the audit and the planted rates of each world; their roles are counted together.

    Returns: false_positives, the share of the roles at 0.5 that are discovered, which must not exceed the nominal share
        by more than chance; and false_discovery_rate, the share of the discoveries that are of these roles. Empty if no
        role has the rate 0.5.
    """
    from scipy.stats import binom  # heavy

    found = np.concatenate([(a.low > NO_ASSOCIATION) | (a.high < NO_ASSOCIATION) for a in audits])
    even = np.concatenate([truth == NO_ASSOCIATION for truth in truths])
    n, wrong, nominal = int(even.sum()), int((found & even).sum()), 1 - max(a.level for a in audits)
    if not n:
        return []
    p = float(binom.sf(wrong - 1, n, nominal))
    allowed = int(binom.isf(rules.alpha, n, nominal))  # more than so many have a p of at most alpha
    checks = [
        Check(
            name="false_positives", value=wrong / n, interval=share_interval(wrong, n, rules.level), n=n,
            null={"p": p, "smallest_p": float(nominal**n), "mean": nominal},
            rule=Rule(keys="alpha", high=allowed / n),
            what=f"share of the roles planted at {NO_ASSOCIATION:g} whose interval excludes it; nominal {nominal:.3g}, "
            "allowed: what this number of roles shows by chance",
        )
    ]  # fmt: skip
    if n_found := int(found.sum()):
        checks.append(
            Check(
                name="false_discovery_rate", value=wrong / n_found, n=n_found,
                interval=share_interval(wrong, n_found, rules.level),
                what="share of all discoveries that are of roles without a planted association",
            )
        )  # fmt: skip
    return checks


def separation(own: Floats, twin: Floats, own_truth: Floats, twin_truth: Floats) -> float:
    """Return how much better two audits follow their own world than each other's: a mean difference of Spearman.

    It is 0 for two equal audits, whatever they are: an audit that reads only the words.

    >>> truth = np.array([0.1, 0.5, 0.9])
    >>> separation(truth, truth[::-1], truth, truth[::-1]), separation(truth, truth, truth, truth[::-1])
    (2.0, 0.0)
    """
    right = rank_correlation(own, own_truth) + rank_correlation(twin, twin_truth)
    return (right - rank_correlation(own, twin_truth) - rank_correlation(twin, own_truth)) / 2


def separation_checks(own: Rates, twin: Rates, own_truth: Floats, twin_truth: Floats, rules: AuditRules) -> list[Check]:
    """Measure whether two audits separate two worlds: separation, and the correlation of the audits with each other.

    The null exchanges the two audits' estimates of single roles: it is what an audit that does not see the world gives.
    The interval resamples roles.
    """
    a, b, n = own.rate, twin.rate, len(own_truth)
    value = separation(a, b, own_truth, twin_truth)
    generator = np.random.default_rng(rules.seed)
    values = np.empty(rules.n_permutations)
    for i in range(rules.n_permutations):
        swap = generator.random(n) < 0.5
        values[i] = separation(np.where(swap, b, a), np.where(swap, a, b), own_truth, twin_truth)
    differing = int((a != b).sum())
    null = Null(
        observed=value, values=values, n_permutations=rules.n_permutations, n_distinct=2.0**differing
    )  # fmt: skip
    found = bootstrap_interval(
        lambda rows: separation(a[rows], b[rows], own_truth[rows], twin_truth[rows]), range(n),
        n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed, method="expanded",
    )  # fmt: skip
    agreement = rank_correlation(a, b)
    return [
        Check(
            name="separation", value=value, interval=(found.low, found.high), n=n, null=null.describe(),
            rule=Rule(keys="least_separation, alpha", low=rules.least_separation, alpha=rules.alpha),
            what="mean rank correlation of both audits with the rates of their own world, minus that with the other's; "
            f"of perfect audits {separation(own_truth, twin_truth, own_truth, twin_truth):.3f}, of an audit that reads "
            "only the words 0",
        ),
        Check(
            name="twin_correlation", value=agreement, interval=rank_correlation_interval(agreement, n, rules.level),
            n=n,
            what="rank correlation of the two audits; the planted rates of both worlds have "
            f"{rank_correlation(own_truth, twin_truth):.3f}",
        ),
    ]  # fmt: skip
