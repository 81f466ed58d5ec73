"""A dictionary of codes against factors: best latent, absorption, recurrence over seeds. Masks are in pointing.py."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Check, Rule
from diffprobe.analysis.latents.redundancy import precise_latents
from diffprobe.analysis.statistics import (
    AnyStatistic,
    GroupPermutation,
    Groups,
    Null,
    area_of,
    bootstrap_interval,
    mean_of,
    mean_statistic,
)
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_PERMUTATIONS = 50
"""Permutations that are scored at once."""


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


@dataclass(frozen=True, kw_only=True, eq=False)
class FactorLatents:
    """The latents that stand for the values of a factor, chosen on train, and how they do on test.

    Samples without a value of the factor are left out of train and of test.
    """

    factor: str
    """Name of the factor."""
    values: tuple[int, ...]
    """Values that occur in train and test."""
    latents: tuple[int, ...]
    """The latent of each value: the one with the largest AUROC on train."""
    rows: Ints
    """Places of the test samples that have a value, (samples,)."""
    labels: Ints
    """Their values, (samples,)."""
    activations: Floats
    """Activation of the latent of each value on them, (samples, values)."""
    absorbed: Floats
    """1 for a sample whose value's latent does not fire while another latent of the value does, else 0, (samples,)."""
    null: Null
    """Mean AUROC of the values on test, among those of permuted labels."""

    @property
    def aurocs(self) -> tuple[float, ...]:
        """AUROC of the latent of each value on test, 0..1."""
        columns = [mid_ranks(self.activations[:, [i]]) for i in range(len(self.values))]
        pairs = zip(columns, self.values, strict=True)
        return tuple(float(areas(ranks, self.labels == value)[0]) for ranks, value in pairs)

    def statistic(self) -> AnyStatistic:
        """Return the mean AUROC of the values as a statistic of the samples that have a value."""
        areas_of_values = [area_of(self.activations[:, i], self.labels == v) for i, v in enumerate(self.values)]
        return mean_statistic(areas_of_values)


def factor_latents(
    codes: Codes, train: Ints, test: Ints, rules: DictionaryRules, *, factor: str,
    groups: tuple[Ints, Ints] | None = None,
) -> FactorLatents:  # fmt: skip
    """Choose the latent of each value on train and score it on test, beside the same with permuted labels.

    The best latent of each value is chosen on train and scored on test, so that the number of latents does not raise
    its score. The null permutes the labels of train and of test and chooses anew.

    Absorption (after Chanin et al. 2024, who use a probe and ablation): a sample with the value on which the value's
    latent does not fire, while another latent does that fires on little else. On train, such a latent has at least
    `least_precision` of its activity on the value.

    Args:
        codes: activations; positive ones count as firing.
        train, test: value of the factor of each sample, in 0..values-1; -1 for a sample that has none.
        groups: group of each sample of train and of test, for samples that are not independent: labels are permuted as
            `GroupPermutation` does. None for independent samples.

    Raises: ConfigError for other numbers of labels; EmptyClass if fewer than two values occur in both parts.
    """
    if len(train) != len(codes.train) or len(test) != len(codes.test):
        raise ConfigError(f"{len(train)} and {len(test)} labels for {len(codes.train)} and {len(codes.test)} codes.")
    of_train, of_test = np.flatnonzero(train >= 0), np.flatnonzero(test >= 0)
    train, test, fit, held = train[of_train], test[of_test], codes.train[of_train], codes.test[of_test]
    values = [int(v) for v in np.intersect1d(train, test)]
    if len(values) < 2:
        raise EmptyClass(f"factor '{factor}': {len(values)} of its values occur in train and test; 2 are needed.")
    train_ranks, test_ranks = mid_ranks(fit), mid_ranks(held)
    latents, observed = _chosen(train_ranks, test_ranks, train[None], test[None], values)
    own = None if groups is None else (groups[0][of_train], groups[1][of_test])
    scores = [
        _chosen(train_ranks, test_ranks, *labels, values)[1] for labels in _permuted(train, test, own, rules)
    ]  # fmt: skip
    permuted = np.concatenate(scores)
    null = Null(observed=float(observed[0]), values=permuted[~np.isnan(permuted)], n_permutations=rules.n_permutations)
    absorbed = np.zeros(len(test))
    fires = fit > 0
    for latent, value in zip(latents[0].tolist(), values, strict=True):
        of_value, active = (part.sum(0).astype(np.float64) for part in (fires[train == value], fires))
        precise = precise_latents(of_value, active, rules.least_precision)
        precise[latent] = False
        absorbed += (test == value) & (held[:, latent] <= 0) & (held[:, precise] > 0).any(1)
    return FactorLatents(
        factor=factor, values=tuple(values), latents=tuple(latents[0].tolist()), rows=of_test, labels=test,
        activations=held[:, latents[0]], absorbed=absorbed, null=null,
    )  # fmt: skip


def factor_checks(
    codes: Codes, train: Ints, test: Ints, rules: DictionaryRules, *, factor: str,
    groups: tuple[Ints, Ints] | None = None,
) -> list[Check]:  # fmt: skip
    """Measure whether single latents equal the values of a factor: latent_auroc and absorption.

    Args: see `factor_latents`; intervals resample whole groups.

    Raises: as `factor_latents`; TooFewGroups.
    """
    found = factor_latents(codes, train, test, rules, factor=factor, groups=groups)
    n = len(found.labels)
    clusters = range(n) if groups is None else groups[1][found.rows].tolist()
    interval, share = (
        bootstrap_interval(statistic, clusters, n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed)
        for statistic in (found.statistic(), mean_of(found.absorbed))
    )
    return [
        Check(
            name="latent_auroc", target=factor, value=found.null.observed, interval=(interval.low, interval.high), n=n,
            null=found.null.describe(), rule=Rule(keys="least_auroc, alpha", low=rules.least_auroc, alpha=rules.alpha),
            what=f"mean over {len(found.values)} values of the AUROC of the best of {codes.train.shape[1]} latents: "
            "chosen on train, scored on test; null: labels permuted, latents chosen anew",
        ),
        Check(
            name="absorption", target=factor, value=share.estimate, interval=(share.low, share.high), n=n,
            rule=Rule(keys="most_absorption", high=rules.most_absorption),
            what="share of the samples whose value's latent does not fire, while another latent of that value does",
        ),
    ]  # fmt: skip


def _permuted(
    train: Ints, test: Ints, groups: tuple[Ints, Ints] | None, rules: DictionaryRules
) -> Iterator[tuple[Ints, Ints]]:
    """Yield permuted labels of train and test, (permutations, samples) each, a few at once."""
    generator = np.random.default_rng(rules.seed)
    of_groups = None
    if groups is not None:
        pairs = zip((train, test), groups, strict=True)
        of_groups = [GroupPermutation(labels, Groups.of(own.tolist(), what="permutation")) for labels, own in pairs]
    for start in range(0, rules.n_permutations, _PERMUTATIONS):
        n = min(_PERMUTATIONS, rules.n_permutations - start)
        if of_groups is not None:
            yield of_groups[0].draw(n, generator), of_groups[1].draw(n, generator)
            continue
        drawn = [(generator.permutation(train), generator.permutation(test)) for _ in range(n)]
        yield np.stack([one for one, _ in drawn]), np.stack([other for _, other in drawn])


def _chosen(train_ranks: Floats, test_ranks: Floats, train: Ints, test: Ints, values: list[int]) -> tuple[Ints, Floats]:
    """Choose the latent of each value on train, and score it on test, for several labellings at once.

    Args:
        train_ranks, test_ranks: mid-ranks of activations, (samples, latents).
        train, test: labels, (labellings, samples).

    Returns: latents (labellings, values), and the mean AUROC of each labelling, NaN where a value does not occur.
    """
    n, n_values = len(train), len(values)
    of_value = (train[:, None] == np.array(values)[:, None]).reshape(n * n_values, -1)
    # For one labelling and value, the order of areas over latents is the order of their rank sums.
    latents: Ints = (of_value.astype(np.float64) @ train_ranks).argmax(1).reshape(n, n_values)
    positive = (test[:, None] == np.array(values)[:, None]).reshape(n * n_values, -1)
    sums = np.einsum("vn,nv->v", positive.astype(np.float64), test_ranks[:, latents.ravel()])
    n_positive = positive.sum(1)
    pairs = n_positive * (positive.shape[1] - n_positive)
    found = np.full(len(sums), np.nan)
    above = sums - n_positive * (n_positive + 1) / 2
    np.divide(above, pairs, out=found, where=pairs > 0)
    return latents, found.reshape(n, n_values).mean(1)


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
