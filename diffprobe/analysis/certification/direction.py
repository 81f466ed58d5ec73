"""A direction against the directions of counterfactual pairs: agreement, split-half ceiling, selectivity."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Check, Rule
from diffprobe.analysis.certification.intervals import jackknife_interval
from diffprobe.analysis.statistics import Null, area_of, bootstrap_interval
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairFeatures:
    """Features of counterfactual pairs.

    Attributes:
        own: change of the features from the negative to the positive value of the certified factor, (pairs, d).
        negative, positive: features of both members of these pairs, (pairs, d).
        others: other factor -> change of the features by a change of that factor, (pairs, d).
    """

    own: Floats
    negative: Floats
    positive: Floats
    others: Mapping[str, Floats]


@dataclass(frozen=True, kw_only=True)
class DirectionRules:
    """Thresholds and settings of the checks."""

    least_split_half: float = 0.5
    """Least cosine of the mean changes of two halves of the pairs: below it the cell has no direction to agree with."""
    least_agreement: float = 0.8
    """Least cosine with the counterfactual direction, relative to its ceiling."""
    least_auroc: float = 0.9
    """Least probability that a positive member has a larger coordinate than a negative one."""
    least_selectivity: float = 0.75
    """Least probability that a pair of the own factor moves the coordinate further than one of another factor does."""
    alpha: float = 0.05
    """Largest p against random directions."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    n_random: int = 1000
    """Random directions of the null distribution; p is at least one over one more."""
    n_resamples: int = 1000
    """Resamples of bootstrap intervals."""
    n_halves: int = 100
    """Random divisions of the pairs into halves."""
    seed: int = 0
    """Seed of resamples, random directions and halves."""


def agreement(direction: Floats, changes: Floats) -> tuple[float, Floats]:
    """Return the cosine of a direction with the true mean change, and its values without each pair.

    The measured mean of n changes is the true mean and noise, which makes its cosine with anything smaller. Its squared
    length is therefore estimated without bias, from products of different pairs: the result is the measured cosine
    over the square root of the reliability of the mean (Spearman and Brown). It can exceed 1 by chance.

    Args:
        direction: shape (d,), any norm but 0.
        changes: shape (pairs, d).

    Raises: EmptyClass for fewer than 3 pairs, or if the pairs have no common direction: their products are negative in
        the mean.
    """
    n = len(changes)
    if n < 3:
        raise EmptyClass(f"agreement: {n} pairs; at least 3 are needed.")
    total, unit = changes.sum(0), direction / np.linalg.norm(direction)
    along, with_total, own = changes @ unit, changes @ total, np.square(changes).sum(1)
    squared, n_own = float(total @ total), float(own.sum())
    length = (squared - n_own) / (n * (n - 1))
    lengths = (squared - 2 * with_total + own - (n_own - own)) / ((n - 1) * (n - 2))
    if length <= 0 or (lengths <= 0).any():
        raise EmptyClass("the changes of the pairs have no common direction, so there is nothing to agree with.")
    value = float(along.sum()) / n / float(np.sqrt(length))
    return value, (along.sum() - along) / (n - 1) / np.sqrt(lengths)


def split_half(changes: Floats, *, n_halves: int, seed: int) -> Floats:
    """Return the cosine of the mean changes of both halves, for random divisions, shape (n_halves,)."""
    generator = np.random.default_rng(seed)
    n, total = len(changes), changes.sum(0)
    found = np.empty(n_halves)
    for i in range(n_halves):
        first = changes[generator.permutation(n)[: n // 2]].sum(0)
        found[i] = cosine(first, total - first)
    return found


def cosine(a: Floats, b: Floats) -> float:
    """Return the cosine of two vectors; 0 if one of them is 0."""
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / scale if scale > 0 else 0.0


def direction_checks(direction: Floats, pairs: PairFeatures, rules: DirectionRules) -> tuple[Check, ...]:
    """Measure one direction.

    Args:
        direction: shape (d,), towards the positive value, any norm but 0.
        pairs: features of the pairs.
        rules: thresholds.

    Returns: split_half (of the cell), agreement, auroc, and selectivity against each other factor. Without a common
        direction of the pairs, agreement is 0 without an interval, and fails.
    Raises: ConfigError for another width or the zero vector; NonFinite; EmptyClass for fewer than 3 pairs.
    """
    direction = np.asarray(direction, dtype=np.float64)
    width = pairs.own.shape[1]
    if direction.shape != (width,):
        raise ConfigError(f"the direction has the shape {direction.shape}; the features of the cell have {width}.")
    if not np.isfinite(direction).all():
        raise NonFinite("the direction has a number that is not finite.")
    if not np.linalg.norm(direction) > 0:
        raise ConfigError("the direction is the zero vector.")
    n = len(pairs.own)
    halves = split_half(pairs.own, n_halves=rules.n_halves, seed=rules.seed)
    low, high = (float(x) for x in np.quantile(halves, [(1 - rules.level) / 2, (1 + rules.level) / 2]))
    checks = [
        Check(
            name="split_half", value=float(halves.mean()), interval=(low, high), n=n,
            rule=Rule(keys="least_split_half", low=rules.least_split_half),
            what="cosine of the counterfactual directions of two halves of the pairs; a property of the cell, and the "
            "interval is its range over random halves",
        ),
        _agreement_check(direction, pairs.own, rules),
    ]  # fmt: skip
    checks.append(_auroc_check(direction, pairs, rules))
    own = pairs.own @ direction
    for factor, changes in sorted(pairs.others.items()):
        other = np.abs(changes @ direction)
        scores, is_own = np.concatenate([own, other]), np.arange(n + len(other)) < n
        found = bootstrap_interval(
            area_of(scores, is_own), range(len(scores)), n_resamples=rules.n_resamples, level=rules.level,
            seed=rules.seed,
        )  # fmt: skip
        checks.append(
            Check(
                name="selectivity", target=factor, value=found.estimate, interval=(found.low, found.high),
                n=len(scores), rule=Rule(keys="least_selectivity", low=rules.least_selectivity),
                what=f"probability that a pair of its own factor moves the coordinate further than one of {factor}",
            )
        )  # fmt: skip
    return tuple(checks)


def _agreement_check(direction: Floats, changes: Floats, rules: DirectionRules) -> Check:
    what = "cosine with the counterfactual direction, relative to the ceiling that the number of pairs sets"
    rule = Rule(keys="least_agreement, alpha", low=rules.least_agreement, alpha=rules.alpha)
    try:
        value, left_out = agreement(direction, changes)
    except EmptyClass:
        if len(changes) < 3:
            raise
        return Check(name="agreement", value=0.0, n=len(changes), rule=rule, what=f"{what}; not defined here, see "
                     "split_half")  # fmt: skip
    mean = changes.mean(0)
    scale = agreement(mean, changes)[0]  # one over the ceiling, which is a property of the pairs
    random = np.random.default_rng(rules.seed + 1).standard_normal((rules.n_random, len(direction)))
    cosines = (random @ mean) / np.linalg.norm(random, axis=1) / np.linalg.norm(mean)
    null = Null(observed=value, values=cosines * scale, n_permutations=rules.n_random)
    return Check(
        name="agreement", value=value, interval=jackknife_interval(value, left_out, rules.level), n=len(changes),
        rule=rule, null=null.describe(), what=what,
    )  # fmt: skip


def _auroc_check(direction: Floats, pairs: PairFeatures, rules: DirectionRules) -> Check:
    n = len(pairs.own)
    scores = np.concatenate([pairs.negative @ direction, pairs.positive @ direction])
    found = bootstrap_interval(
        area_of(scores, np.arange(2 * n) >= n), [*range(n), *range(n)], n_resamples=rules.n_resamples,
        level=rules.level, seed=rules.seed,
    )  # fmt: skip
    return Check(
        name="auroc", value=found.estimate, interval=(found.low, found.high), n=2 * n,
        rule=Rule(keys="least_auroc", low=rules.least_auroc),
        what="probability that a member with the positive value has a larger coordinate than one with the negative; "
        "intervals resample pairs",
    )  # fmt: skip
