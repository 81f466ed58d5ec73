"""From prompt latents to rates: the share of seeds in which a subject without an attribute is on the positive side.

For each template, direction and thresholds come from the other templates, so that no prompt is classified by itself.
The threshold of a subject is the middle between its own prompts with either end, and what a template and a seed add to
all subjects is subtracted: what the subject, the template and the noise add to the coordinate cancels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Float64

from diffprobe.analysis.audit.association import Estimates, Sampling
from diffprobe.analysis.audit.direction import left_out_directions
from diffprobe.analysis.statistics import TwoWayResamples
from diffprobe.core.errors import ConfigError, UninformativeReader

Latents = Float32[np.ndarray, "subjects templates seeds d"]
EndLatents = Float32[np.ndarray, "subjects templates words seeds d"]


How = Literal["share", "corrected", "position"]
"""How a rate follows from latents: the share of prompts on the positive side; that share, corrected by how often
prompts with an attribute are on their own side; or the mean position between the variants."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sides:
    """On which side of its threshold each prompt is, of subjects and of the attribute prompts."""

    subjects: Bool[np.ndarray, "subjects templates seeds"]
    """Whether the subject without an attribute is on the positive side."""
    positive: Float64[np.ndarray, "templates seeds"]
    """Share of the prompts with a positive word on the positive side."""
    negative: Float64[np.ndarray, "templates seeds"]
    """Share of the prompts with a negative word on the negative side."""

    @property
    def separability(self) -> float:
        """Balanced accuracy of the attribute prompts, 0..1: 0.5 by chance."""
        return float((self.positive.mean() + self.negative.mean()) / 2)


@dataclass(frozen=True, kw_only=True, eq=False)
class SubjectRates:
    """The rate of the positive end of each subject, 0..1, with intervals."""

    rate: Float64[np.ndarray, " subjects"]
    """Estimates."""
    low: Float64[np.ndarray, " subjects"] | None
    """Lower ends; None with a single template or seed."""
    high: Float64[np.ndarray, " subjects"] | None
    """Upper ends."""
    separability: float
    """Balanced accuracy of the attribute prompts, each classified by the other templates."""
    separability_interval: tuple[float, float] | None
    """Its interval."""
    how: How
    """How the rates follow from the latents."""


def sides_of(
    subjects: Latents, positive: EndLatents, negative: EndLatents, differences: Float64[np.ndarray, "templates seeds d"]
) -> Sides:
    """Classify each prompt by directions and thresholds from the other templates.

    Args:
        subjects: latents of the subjects without an attribute, not centred.
        positive, negative: latents of the same subjects with the words of either end.
        differences: paired differences of the contexts of the axis.

    Raises: EmptyClass if both ends are equal on average, or for a single template.
    """
    units = left_out_directions(differences).astype(subjects.dtype)
    n = subjects.shape[1]
    plain, right, left = (np.einsum(f"{axes}d,td->{axes}", one, units).astype(np.float64) for axes, one in (
        ("nts", subjects), ("ntws", positive), ("ntws", negative),
    ))  # fmt: skip
    middle = _middle_of_others((right.mean(2) + left.mean(2)) / 2)
    plain, right, left = plain - middle, right - middle[:, :, None], left - middle[:, :, None]
    own, correct = np.empty(plain.shape, dtype=bool), np.empty((2, *plain.shape[1:]))
    for t in range(n):
        others = np.arange(n) != t
        threshold = (right[:, others].mean((1, 2, 3)) + left[:, others].mean((1, 2, 3))) / 2
        own[:, t] = plain[:, t] > threshold[:, None]
        correct[0, t] = (right[:, t] > threshold[:, None, None]).mean((0, 1))
        correct[1, t] = (left[:, t] <= threshold[:, None, None]).mean((0, 1))
    return Sides(subjects=own, positive=correct[0], negative=correct[1])


def _middle_of_others(
    middle: Float64[np.ndarray, "subjects templates seeds"],
) -> Float64[np.ndarray, "subjects templates seeds"]:
    """Return the mean of the other subjects in each template and seed, 0 for a single subject.

    It is what a template and a seed add to all prompts, without what is measured.
    """
    n = len(middle)
    return (middle.sum(0) - middle) / (n - 1) if n > 1 else np.zeros_like(middle)


def rates_of(
    sides: Sides, sampling: Sampling, *, how: How = "share", positions: Estimates | None = None
) -> SubjectRates:
    """Return the rate of each subject with an interval.

    - "share": the share on the positive side. Its interval is exact for as many independent draws as the two-way
      bootstrap variance amounts to (Korn and Graubard 1998, Confidence intervals for proportions with small expected
      number of positive counts estimated from survey data); of a share of 0 or 1, whose variance is not known, as many
      as there are seeds. Latents that overlap draw it towards 0.5.
    - "corrected": that share, corrected by how often prompts with an attribute are on their own side (Rogan and Gladen
      1978), with a two-way bootstrap interval.
    - "position": (1 + position) / 2, limited to 0..1, with the interval of the position.

    The last two are right only if the model draws what prompts with an attribute name: then overlap does not matter.

    Args:
        positions: as `positions_of` returns them; needed for "position".

    Raises: ConfigError for "position" without them; UninformativeReader for "corrected", if
        attribute prompts are on their own side no more often than by chance.
    """
    resamples = sampling.resamples(*sides.positive.shape)
    validity = None
    if resamples is not None:
        drawn = resamples.means((sides.positive + sides.negative) / 2)
        found = resamples.interval(sides.separability, drawn, level=sampling.level)
        validity = (max(0.0, found.low), min(1.0, found.high))
    low = high = None
    if how == "position":
        if positions is None:
            raise ConfigError("rates_by=position: positions are not defined.", "allowed: share, corrected")
        values, low, high = (
            None if one is None else np.clip((1 + one) / 2, 0, 1)
            for one in (positions.value, positions.low, positions.high)
        )
        assert values is not None
        low, high = (None, None) if low is None or high is None else (np.minimum(low, values), np.maximum(high, values))
    elif how == "corrected":
        values, ends = _corrected(sides, resamples, sampling)
        low, high = (None, None) if ends is None else (ends[:, 0], ends[:, 1])
    else:
        values = sides.subjects.mean((1, 2))
        if resamples is not None:
            variances = resamples.means(sides.subjects.astype(np.float64)).var(0)
            _, n_templates, n_seeds = sides.subjects.shape
            ends = np.array([
                _share_interval(float(rate), float(variance), n_templates * n_seeds, n_seeds, sampling.level)
                for rate, variance in zip(values, variances, strict=True)
            ])  # fmt: skip
            low, high = ends[:, 0], ends[:, 1]
    return SubjectRates(
        rate=values, low=low, high=high, separability=sides.separability, separability_interval=validity, how=how
    )


def _corrected(
    sides: Sides, resamples: TwoWayResamples | None, sampling: Sampling
) -> tuple[Float64[np.ndarray, " subjects"], Float64[np.ndarray, "subjects 2"] | None]:
    right, left = float(sides.positive.mean()), float(sides.negative.mean())
    if right + left <= 1:
        raise UninformativeReader(
            f"attribute prompts are on their own side in {right:.0%} and {left:.0%}: rates cannot be corrected."
        )
    corrected = np.clip((sides.subjects.mean((1, 2)) + left - 1) / (right + left - 1), 0, 1)
    if resamples is None:
        return corrected, None
    shares = resamples.means(sides.subjects.astype(np.float64))
    rights, lefts = resamples.means(sides.positive), resamples.means(sides.negative)
    below = rights + lefts - 1
    below = np.where(below > 0, below, np.nan)
    drawn = np.clip((shares + lefts[:, None] - 1) / below[:, None], 0, 1)
    ends = []
    for i, value in enumerate(corrected):
        found = resamples.interval(float(value), drawn[:, i], level=sampling.level)
        ends.append((min(found.low, value), max(found.high, value)))
    return corrected, np.array(ends)


def _share_interval(rate: float, variance: float, cells: int, n_seeds: int, level: float) -> tuple[float, float]:
    """Return the exact interval of a share of as many draws as its variance amounts to."""
    from scipy.special import betaincinv  # heavy

    n = float(np.clip(rate * (1 - rate) / variance, 1, cells)) if variance > 0 else float(n_seeds)
    hits, tail = rate * n, (1 - level) / 2
    low = 0.0 if rate == 0 else float(betaincinv(hits, n - hits + 1, tail))
    high = 1.0 if rate == 1 else float(betaincinv(hits + 1, n - hits, 1 - tail))
    return min(low, rate), max(high, rate)
