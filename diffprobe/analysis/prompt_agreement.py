"""A direction from prompts against the changes that counterfactual pairs make in the same features."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.direction import DirectionRules, PairFeatures, agreement, cosine, direction_checks
from diffprobe.analysis.certification.intervals import jackknife_interval
from diffprobe.analysis.prompt_directions import HalvesCosine, crossed_halves
from diffprobe.core.errors import EmptyClass

Floats = NDArray[np.float64]
Interval = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class PromptAgreement:
    """How far a direction from prompts is the counterfactual one.

    Attributes:
        agreement: cosine with the mean change of the pairs, relative to the ceiling that their number sets; None where
            the pairs have no common direction.
        interval: of the agreement, over pairs and over contexts.
        null: agreement of random directions, as `Null.describe` returns it.
        corrected: the agreement relative to the reliability of the prompt direction over contexts and seeds as well;
            None where its halves do not agree.
        by_seed: agreement of the direction of each seed alone.
        others: other factor -> agreement with the counterfactual direction of that factor.
        auroc: probability that a pair's member with the positive value has a larger coordinate than one with the
            negative value.
        auroc_interval: over pairs.
        truth_halves: cosine of the mean changes of two halves of the pairs, and its range over random halves.
        prompt_halves: the same of the prompts, over disjoint halves of contexts and of seeds.
        n_pairs: number of pairs.
    """

    agreement: float | None
    interval: Interval | None
    null: Mapping[str, float] | None
    corrected: float | None
    by_seed: tuple[float, ...]
    others: Mapping[str, float]
    auroc: float
    auroc_interval: Interval
    truth_halves: HalvesCosine
    prompt_halves: HalvesCosine
    n_pairs: int


def prompt_agreement(
    changes: Floats, pairs: PairFeatures, rules: DirectionRules, others: Mapping[str, Floats] | None = None
) -> PromptAgreement:
    """Compare the mean of paired prompt differences with the mean change of counterfactual pairs.

    Args:
        changes: paired differences of prompts, shape (contexts, seeds, d); at least 3 contexts and 2 seeds.
        pairs: features of the pairs; the changes of other factors in it are not used.
        rules: numbers of draws, level and seed; thresholds are not used.
        others: other factor -> changes of its pairs, (pairs, d).

    The interval adds the squares of two delete-one jackknife half-widths, over pairs and over contexts, which are drawn
    independently. It does not vary the seeds, which are few.

    Raises: EmptyClass for fewer than 3 contexts or pairs, or 2 seeds; ConfigError for differences whose mean is 0.
    """
    direction = changes.mean((0, 1))
    checks = {check.name: check for check in direction_checks(direction, pairs, rules)}
    found, halves, area = (checks[name] for name in ("agreement", "split_half", "auroc"))
    assert halves.interval is not None and area.interval is not None
    prompt_halves = crossed_halves(changes, n_halves=rules.n_halves, level=rules.level, seed=rules.seed)
    value = interval = corrected = None
    by_seed: tuple[float, ...] = ()
    if found.interval is not None:
        value = found.value
        mean = pairs.own.mean(0)
        scale = agreement(mean, pairs.own)[0]
        interval = _interval(value, found.interval, changes.mean(1), mean, scale, rules.level)
        by_seed = tuple(cosine(one, mean) * scale for one in changes.mean(0))
        if prompt_halves.mean > 0:
            reliability = 2 * prompt_halves.mean / (1 + prompt_halves.mean)  # Spearman and Brown
            corrected = value / float(np.sqrt(reliability))
    return PromptAgreement(
        agreement=value, interval=interval, null=None if value is None else found.null, corrected=corrected,
        by_seed=by_seed, others=_others(direction, others or {}), auroc=area.value, auroc_interval=area.interval,
        truth_halves=HalvesCosine(mean=halves.value, low=halves.interval[0], high=halves.interval[1], n=halves.n),
        prompt_halves=prompt_halves, n_pairs=len(pairs.own),
    )  # fmt: skip


def _interval(
    value: float, over_pairs: Interval, contexts: Floats, mean: Floats, scale: float, level: float
) -> Interval:
    """Return the interval over pairs and contexts, from that over pairs and the changes of contexts (contexts, d)."""
    total = contexts.sum(0)
    left_out = np.array([cosine(total - one, mean) * scale for one in contexts])
    low, high = jackknife_interval(value, left_out, level)
    half = float(np.hypot((high - low) / 2, (over_pairs[1] - over_pairs[0]) / 2))
    return value - half, value + half


def _others(direction: Floats, others: Mapping[str, Floats]) -> dict[str, float]:
    found = {}
    for factor, changes in sorted(others.items()):
        try:
            found[factor] = agreement(direction, changes)[0]
        except EmptyClass:  # this factor does not move the features in one direction
            continue
    return found
