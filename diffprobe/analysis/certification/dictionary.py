"""A dictionary of codes against factors: best latent, absorption, recurrence over seeds. Masks are in pointing.py."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Check, Rule
from diffprobe.analysis.latents.redundancy import precise_latents
from diffprobe.analysis.statistics import Null, area_of, bootstrap_interval, mean_of, mean_statistic
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class DictionaryRules:
    """Thresholds and settings of the checks."""

    least_auroc: float = 0.9
    """Least mean AUROC of the best latents of a factor's values."""
    most_absorption: float = 0.2
    """Largest share of the samples with a value that its latent misses and another latent of the value has."""
    least_precision: float = 0.9
    """Least share of a value among the samples on which a latent fires, for the latent to be one of the value."""
    least_recurrence: float = 0.7
    """Least mean cosine of a latent with its match in another run."""
    alpha: float = 0.05
    """Largest p that counts as above chance."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    n_permutations: int = 200
    """Permutations of each null distribution."""
    n_resamples: int = 1000
    """Resamples of bootstrap intervals."""
    seed: int = 0
    """Seed of permutations and resamples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Codes:
    """Codes of independent samples: dense activations (samples, latents) for choosing and for scoring."""

    train: Floats
    test: Floats

    def __post_init__(self) -> None:
        if self.train.ndim != 2 or self.test.ndim != 2 or self.train.shape[1] != self.test.shape[1]:
            raise ConfigError(
                f"codes of the shapes {self.train.shape} and {self.test.shape}.", "needed: (samples, latents), the "
                "same latents in train and test",
            )  # fmt: skip
        if not (np.isfinite(self.train).all() and np.isfinite(self.test).all()):
            raise NonFinite("the codes have a number that is not finite.")


def areas(ranks: Floats, positive: NDArray[np.bool_]) -> Floats:
    """Return the AUROC of each latent, from the mid-ranks of its activations (samples, latents)."""
    n, n_positive = len(positive), int(positive.sum())
    found: Floats = (ranks[positive].sum(0) - n_positive * (n_positive + 1) / 2) / (n_positive * (n - n_positive))
    return found


def best_latents(ranks: Floats, labels: Ints, values: list[int]) -> list[int]:
    """Return for each value the latent with the largest AUROC, from the mid-ranks of activations (samples, latents)."""
    return [int(areas(ranks, labels == value).argmax()) for value in values]


def mid_ranks(codes: Floats) -> Floats:
    """Return the mid-ranks of each column, from 1."""
    from scipy.stats import rankdata  # heavy

    found: Floats = rankdata(codes, axis=0)
    return found


def factor_checks(codes: Codes, train: Ints, test: Ints, rules: DictionaryRules, *, factor: str) -> list[Check]:
    """Measure whether single latents equal the values of a factor: latent_auroc and absorption.

    The best latent of each value is chosen on train and scored on test, so that the number of latents does not raise
    its score. The null permutes the labels of train and of test and chooses anew.

    Absorption (after Chanin et al. 2024, who use a probe and ablation): a sample with the value on which the value's
    latent does not fire, while another latent does that fires on little else. On train, such a latent has at least
    `least_precision` of its activity on the value.

    Args:
        codes: activations; positive ones count as firing.
        train, test: value of the factor of each sample, in 0..values-1.

    Raises: EmptyClass if fewer than two values occur in both parts.
    """
    if len(train) != len(codes.train) or len(test) != len(codes.test):
        raise ConfigError(f"{len(train)} and {len(test)} labels for {len(codes.train)} and {len(codes.test)} codes.")
    values = [int(v) for v in np.intersect1d(train, test)]
    if len(values) < 2:
        raise EmptyClass(f"factor '{factor}': {len(values)} of its values occur in train and test; 2 are needed.")
    train_ranks, test_ranks = mid_ranks(codes.train), mid_ranks(codes.test)

    def score(latents: list[int], labels: Ints) -> float:
        found = [areas(test_ranks[:, [j]], labels == v)[0] for j, v in zip(latents, values, strict=True)]
        return float(np.mean(found))

    best, generator = best_latents(train_ranks, train, values), np.random.default_rng(rules.seed)
    observed = score(best, test)
    null = Null(
        observed=observed, n_permutations=rules.n_permutations,
        values=np.array([
            score(best_latents(train_ranks, generator.permutation(train), values), generator.permutation(test))
            for _ in range(rules.n_permutations)
        ]),
    )  # fmt: skip
    statistic = mean_statistic([area_of(codes.test[:, j], test == v) for j, v in zip(best, values, strict=True)])
    interval = bootstrap_interval(
        statistic, range(len(test)), n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed
    )
    absorbed = np.zeros(len(test))
    for latent, value in zip(best, values, strict=True):
        fires = codes.train > 0
        of_value, active = (part.sum(0).astype(np.float64) for part in (fires[train == value], fires))
        precise = precise_latents(of_value, active, rules.least_precision)
        precise[latent] = False
        others = (codes.test[:, precise] > 0).any(1)
        absorbed += (test == value) & (codes.test[:, latent] <= 0) & others
    share = bootstrap_interval(
        mean_of(absorbed), range(len(test)), n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed
    )
    return [
        Check(
            name="latent_auroc", target=factor, value=observed, interval=(interval.low, interval.high), n=len(test),
            null=null.describe(), rule=Rule(keys="least_auroc, alpha", low=rules.least_auroc, alpha=rules.alpha),
            what=f"mean over {len(values)} values of the AUROC of the best of {codes.train.shape[1]} latents: chosen "
            "on train, scored on test; null: labels permuted, latents chosen anew",
        ),
        Check(
            name="absorption", target=factor, value=share.estimate, interval=(share.low, share.high), n=len(test),
            rule=Rule(keys="most_absorption", high=rules.most_absorption),
            what="share of the samples whose value's latent does not fire, while another latent of that value does",
        ),
    ]  # fmt: skip


def recurrence_check(rows: Floats, other: Floats, rules: DictionaryRules, *, of: str) -> Check:
    """Measure how well the decoder rows of two runs match: mean cosine under the best one-to-one matching.

    The null matches random rows of the same numbers and width instead of the other run's.

    Args:
        rows, other: decoder rows (latents, d) of two runs.

    Raises: ConfigError for rows of different widths.
    """
    if rows.shape[1] != other.shape[1]:
        raise ConfigError(f"decoder rows of width {rows.shape[1]} and of width {other.shape[1]} cannot be matched.")
    cosines = _matched(rows, other)
    generator = np.random.default_rng(rules.seed)
    values = [float(_matched(rows, generator.standard_normal(other.shape)).mean()) for _ in range(rules.n_permutations)]
    found = bootstrap_interval(
        mean_of(cosines), range(len(cosines)), n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed
    )
    null = Null(observed=found.estimate, values=np.array(values), n_permutations=rules.n_permutations)
    return Check(
        name="recurrence", target=of, value=found.estimate, interval=(found.low, found.high), n=len(cosines),
        null=null.describe(),
        rule=Rule(keys="least_recurrence, alpha", low=rules.least_recurrence, alpha=rules.alpha),
        what="mean cosine of decoder rows with those of another run, matched one to one; intervals resample latents",
    )  # fmt: skip


def _matched(rows: Floats, other: Floats) -> Floats:
    from scipy.optimize import linear_sum_assignment  # heavy

    unit, others = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (rows, other))
    cosines = unit @ others.T
    found: Floats = cosines[linear_sum_assignment(-cosines)]
    return found
