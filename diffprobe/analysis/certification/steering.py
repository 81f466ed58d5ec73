"""Steering along a direction: dose-response of its own attribute, and how much else changes, against random directions.

Works on what an attribute reader found in the images. Those of all strengths have the same prompts and noise, so every
difference is paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Check, Rule
from diffprobe.analysis.certification.intervals import rank_correlation
from diffprobe.analysis.statistics import Null, bootstrap_interval, mean_of
from diffprobe.core.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeredReadings:
    """What is read from images that were generated at several strengths of one direction.

    Attributes:
        strengths: ascending, with 0 between its ends, (strengths,).
        codes: factor -> code of the value that is read, (strengths, images).

    Raises: ConfigError for strengths or codes of another form.
    """

    strengths: tuple[float, ...]
    codes: Mapping[str, Ints]

    def __post_init__(self) -> None:
        check_strengths(self.strengths)
        shapes = {codes.shape for codes in self.codes.values()}
        if len(shapes) != 1 or any(len(shape) != 2 or shape[0] != len(self.strengths) for shape in shapes):
            raise ConfigError(
                f"readings of the shapes {sorted(shapes)}.",
                f"needed: ({len(self.strengths)}, images) for each factor, one row per strength",
            )

    def rates(self, factor: str, value: int) -> Floats:
        """Return the share of images that show a value, by strength."""
        found: Floats = (self.codes[factor] == value).mean(1)
        return found

    def effect(self, factor: str, value: int) -> Floats:
        """Return for each image whether it shows a value at the largest strength, minus that at the smallest."""
        shown = (self.codes[factor] == value).astype(np.float64)
        return shown[-1] - shown[0]

    def changed(self, factor: str) -> Floats:
        """Return the share of both ends at which the reading of an image differs from that at strength 0, (images,)."""
        codes = self.codes[factor]
        ends = codes[[0, -1]] != codes[[self.strengths.index(0)]]
        found: Floats = ends.mean(0)
        return found


@dataclass(frozen=True, kw_only=True)
class SteeringRules:
    """Thresholds and settings of the checks."""

    least_dose: float = 0.8
    """Least rank correlation of strength and rate."""
    least_effect: float = 0.2
    """Least difference of the rate at the largest strength and that at the smallest."""
    most_collateral: float = 0.5
    """Largest share of images whose reading of another factor changes."""
    alpha: float = 0.05
    """Largest p against random directions of equal norm."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    n_permutations: int = 1000
    """Permutations of the strengths, for the dose-response."""
    n_resamples: int = 1000
    """Resamples of bootstrap intervals."""
    seed: int = 0
    """Seed of permutations and resamples."""


def check_strengths(strengths: Sequence[float]) -> None:
    """Refuse strengths that are not ascending from below 0 over 0 to above it. Raises: ConfigError.

    >>> check_strengths((-2.0, 0.0, 2.0))
    """
    rising = all(low < high for low, high in zip(strengths, strengths[1:], strict=False))
    if not (rising and 0 in strengths and len(strengths) >= 3 and strengths[0] < 0 < strengths[-1]):
        raise ConfigError(
            f"strengths=[{', '.join(f'{strength:g}' for strength in strengths)}]: needed are at least three, ascending "
            "from a negative one over 0 to a positive one.",
            fix="strengths=[-4,-2,0,2,4]",
        )


def steering_checks(
    steered: SteeredReadings,
    random: Sequence[SteeredReadings],
    prompts: Sequence[str],
    rules: SteeringRules,
    *,
    factor: str,
    value: int,
) -> tuple[Check, ...]:
    """Measure the effect of steering: steering_dose, steering_effect, and steering_collateral for each other factor.

    Args:
        steered: readings along the direction.
        random: readings along random directions of equal norm; their ends may be all that was generated beside 0.
        prompts: prompt of each image; intervals resample prompts.
        rules: thresholds.
        factor: the direction's own factor.
        value: code of the value at its positive end.

    Raises: ConfigError without random directions, or for prompts of another number; TooFewGroups for one prompt.
    """
    if not random:
        raise ConfigError("the effect of steering is compared with random directions; there are none.")
    n = next(iter(steered.codes.values())).shape[1]
    if len(prompts) != n:
        raise ConfigError(f"{len(prompts)} prompts for {n} images.")
    checks = [_dose_check(steered, prompts, rules, factor=factor, value=value)]
    effect = steered.effect(factor, value)
    found = bootstrap_interval(
        mean_of(effect), prompts, n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed, method="expanded"
    )
    null = Null(
        observed=found.estimate, values=np.array([one.effect(factor, value).mean() for one in random]),
        n_permutations=len(random),
    )  # fmt: skip
    rates = ", ".join(f"{rate:.2f}" for rate in steered.rates(factor, value))
    checks.append(
        Check(
            name="steering_effect", target=factor, value=found.estimate, interval=(found.low, found.high), n=n,
            null=null.describe(), rule=Rule(keys="least_effect, alpha", low=rules.least_effect, alpha=rules.alpha),
            what="share of images read as the positive value at the largest strength, minus that at the smallest, same "
            f"prompts and noise; shares by strength: {rates}; null: random directions of equal norm",
        )
    )  # fmt: skip
    for other in sorted(set(steered.codes) - {factor}):
        changed = steered.changed(other)
        share = bootstrap_interval(
            mean_of(changed), prompts, n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed,
            method="expanded",
        )  # fmt: skip
        by_chance = Null(
            observed=share.estimate, values=np.array([one.changed(other).mean() for one in random]),
            n_permutations=len(random), higher_is_better=False,
        )  # fmt: skip
        checks.append(
            Check(
                name="steering_collateral", target=other, value=share.estimate, interval=(share.low, share.high), n=n,
                null=by_chance.describe(), rule=Rule(keys="most_collateral", high=rules.most_collateral),
                what=f"share of images whose reading of {other} at an end differs from that without steering, mean of "
                "both ends; null: random directions of equal norm",
            )
        )  # fmt: skip
    return tuple(checks)


def _dose_check(
    steered: SteeredReadings, prompts: Sequence[str], rules: SteeringRules, *, factor: str, value: int
) -> Check:
    shown = (steered.codes[factor] == value).astype(np.float64)
    strengths = np.array(steered.strengths)

    def dose(rows: Ints) -> float:
        return rank_correlation(strengths, shown[:, rows].mean(1))

    found = bootstrap_interval(
        dose, prompts, n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed, method="percentile"
    )
    generator = np.random.default_rng(rules.seed)
    values = np.array([
        rank_correlation(strengths, generator.permuted(shown, axis=0).mean(1)) for _ in range(rules.n_permutations)
    ])  # fmt: skip
    null = Null(observed=found.estimate, values=values, n_permutations=rules.n_permutations)
    return Check(
        name="steering_dose", target=factor, value=found.estimate, interval=(found.low, found.high), n=len(prompts),
        null=null.describe(), rule=Rule(keys="least_dose", low=rules.least_dose),
        what=f"rank correlation of {len(strengths)} strengths and the share of images read as the positive value; "
        "null: strengths permuted within each image",
    )  # fmt: skip
