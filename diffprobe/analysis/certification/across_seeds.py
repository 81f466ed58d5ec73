"""A dictionary over several seeds: which factors have a latent in most of them, and means with intervals.

Intervals resample the test samples, or their groups, with the same samples for all seeds; the seeds themselves are
reported beside them.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.dictionary import FactorLatents
from diffprobe.analysis.certification.pointing import PointingHits
from diffprobe.analysis.statistics import (
    AnyStatistic,
    SumStatistic,
    WeightStatistic,
    benjamini_hochberg,
    bootstrap_interval,
    evaluate,
    mean_of,
    mean_statistic,
    ratio,
)
from diffprobe.core.errors import ConfigError

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class SeedRules:
    """When a factor has a latent, and how intervals are drawn."""

    least_auroc: float = 0.9
    """Least mean AUROC of the latents of a factor's values."""
    most_q: float = 0.01
    """The p of the null distribution, adjusted for the number of factors, has to be below this."""
    share_of_seeds: float = 2 / 3
    """Share of the seeds in which both have to hold, rounded up: 2 of 3, 2 of 2, 1 of 1."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    n_resamples: int = 1000
    """Resamples of intervals."""
    seed: int = 0
    """Seed of the resamples."""

    def seeds_needed(self, n: int) -> int:
        """Return the number of n seeds in which a factor needs a latent.

        >>> [SeedRules().seeds_needed(n) for n in (1, 2, 3, 5)]
        [1, 2, 2, 4]
        """
        return math.ceil(self.share_of_seeds * n - 1e-9)


@dataclass(frozen=True, kw_only=True, eq=False)
class SeedScores:
    """What one dictionary of one seed has."""

    factors: Sequence[FactorLatents]
    """Latents of each factor."""
    pointing: Mapping[str, PointingHits]
    """Factor -> images in which its latents are largest on the part that shows it; empty without masks."""
    residual: Floats | None
    """Squared error of the reconstruction of each test sample; None without a decoder."""
    square: Floats | None
    """Squared distance of each test sample from the mean of the test samples."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A mean over seeds, with its interval over samples."""

    value: float
    low: float
    high: float
    seeds: tuple[float, ...]
    """The value of each seed."""


@dataclass(frozen=True, kw_only=True)
class FactorSummary:
    """One factor over seeds."""

    factor: str
    auroc: Spread
    """Mean AUROC of the latents of its values on test."""
    q: tuple[float, ...]
    """Adjusted p of each seed."""
    n_seeds: int
    """Seeds in which it has a latent."""
    has_latent: bool
    """Whether these are enough."""
    n_values: int
    """Number of its values."""
    n_values_with_latent: int
    """Values with a latent of the least AUROC in enough seeds."""
    pointing: Spread | None
    """Share of images in which the latent is largest on the part that shows it; None without a mask."""
    pointing_null: float | None
    """The same with masks of other images, mean over seeds."""


@dataclass(frozen=True, kw_only=True)
class DictionarySummary:
    """All factors over seeds."""

    factors: tuple[FactorSummary, ...]
    auroc: Spread
    """Mean over factors."""
    absorption: Spread
    """Mean over factors."""
    pointing: Spread | None
    """Mean over the factors with a mask."""
    pointing_null: float | None
    """The same with masks of other images."""
    fvu: Spread | None
    """Fraction of variance unexplained on test; None without a decoder."""


def summarise(
    seeds: Sequence[SeedScores], n_samples: int, clusters: Sequence[Hashable], rules: SeedRules
) -> DictionarySummary:
    """Combine the seeds of a dictionary.

    Args:
        seeds: scores on the same test samples, with the same factors.
        n_samples: number of test samples.
        clusters: group of each of them.
        rules: when a factor has a latent.

    Raises: ConfigError for no seed, or seeds with other factors.
    """
    names = [[one.factor for one in seed.factors] for seed in seeds]
    if not seeds or any(own != names[0] for own in names):
        raise ConfigError(f"{len(seeds)} seeds with the factors {names}: at least one seed, and the same factors.")
    needed = rules.seeds_needed(len(seeds))
    adjusted = [benjamini_hochberg([one.null.p for one in seed.factors]).adjusted for seed in seeds]

    def spread(of_seeds: Sequence[Sequence[AnyStatistic]]) -> Spread:
        own = [mean_statistic(parts) for parts in of_seeds]
        found = bootstrap_interval(
            mean_statistic(own), clusters, n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed
        )
        values = tuple(evaluate(one, np.arange(n_samples)) for one in own)
        return Spread(value=found.estimate, low=found.low, high=found.high, seeds=values)

    def pointed(factors: Sequence[str]) -> Spread | None:
        if not factors:
            return None
        return spread([[_share(seed.pointing[f].hits, seed.pointing[f].rows, n_samples) for f in factors]
                       for seed in seeds])  # fmt: skip

    def null_of(factors: Sequence[str]) -> float | None:
        means = [seed.pointing[factor].null.mean for seed in seeds for factor in factors]
        return float(np.mean(means)) if means else None

    areas = [[on_rows(one.statistic(), one.rows, n_samples) for one in seed.factors] for seed in seeds]
    factors = []
    for i, factor in enumerate(names[0]):
        own = [seed.factors[i] for seed in seeds]
        q = tuple(values[i] for values in adjusted)
        found = [one.null.observed >= rules.least_auroc and value < rules.most_q
                 for one, value in zip(own, q, strict=True)]  # fmt: skip
        with_latent = np.array([one.aurocs for one in own]) >= rules.least_auroc
        factors.append(
            FactorSummary(
                factor=factor, auroc=spread([[parts[i]] for parts in areas]), q=q, n_seeds=sum(found),
                has_latent=sum(found) >= needed, n_values=len(own[0].values),
                n_values_with_latent=int((with_latent.sum(0) >= needed).sum()),
                pointing=pointed([factor] if factor in seeds[0].pointing else []),
                pointing_null=null_of([factor] if factor in seeds[0].pointing else []),
            )
        )  # fmt: skip
    absorbed = [[_share(one.absorbed, one.rows, n_samples) for one in seed.factors] for seed in seeds]
    errors = [_explained(seed) for seed in seeds]
    return DictionarySummary(
        factors=tuple(factors), auroc=spread(areas), absorption=spread(absorbed),
        pointing=pointed(list(seeds[0].pointing)), pointing_null=null_of(list(seeds[0].pointing)),
        fvu=None if None in errors else spread([[one] for one in errors if one is not None]),
    )  # fmt: skip


def on_rows(statistic: AnyStatistic, rows: NDArray[np.int64], n: int) -> AnyStatistic:
    """Return a statistic of some samples as one of all n, of which the others have no influence.

    >>> evaluate(on_rows(mean_of(np.array([1.0, 3.0])), np.array([0, 2]), 3), np.array([1, 2, 2]))
    3.0
    """
    if isinstance(statistic, WeightStatistic):
        return WeightStatistic(n_samples=n, value=lambda weights: statistic.value(weights[:, rows]))
    if isinstance(statistic, SumStatistic):
        parts = np.zeros((n, statistic.parts.shape[1]))
        parts[rows] = statistic.parts
        return SumStatistic(parts=parts, value=statistic.value)
    raise ConfigError("a function of positions cannot be restricted to some samples.")


def _share(values: Floats, rows: NDArray[np.int64], n: int) -> AnyStatistic:
    return on_rows(mean_of(values), rows, n)


def _explained(seed: SeedScores) -> AnyStatistic | None:
    if seed.residual is None or seed.square is None:
        return None
    return SumStatistic(parts=np.stack([seed.residual, seed.square], axis=1), value=ratio)
