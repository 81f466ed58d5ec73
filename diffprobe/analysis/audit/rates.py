"""From prompt latents to rates: the share of seeds in which a subject without an attribute is on the positive side.

For each template, direction and thresholds come from the other templates, so that no prompt is classified by itself.
The threshold of a subject is the middle between its own prompts with either end: what the subject itself adds to the
coordinate cancels.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64

from diffprobe.analysis.audit.association import Sampling
from diffprobe.analysis.statistics import TwoWayResamples
from diffprobe.core.errors import ConfigError, EmptyClass, UninformativeReader

Latents = Float32[np.ndarray, "subjects templates seeds d"]
EndLatents = Float32[np.ndarray, "subjects templates words seeds d"]


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
    is_corrected: bool
    """Whether rates are corrected by how often attribute prompts are on their own side."""


def sides_of(subjects: Latents, positive: EndLatents, negative: EndLatents) -> Sides:
    """Classify each prompt by directions and thresholds from the other templates.

    Args:
        subjects: latents of the subjects without an attribute, not centred.
        positive, negative: latents of the same subjects with the words of either end.

    Raises: ConfigError for a single template; EmptyClass if both ends are equal on average.
    """
    n = subjects.shape[1]
    if n < 2:
        raise ConfigError("rates need at least 2 templates: thresholds are validated on templates left out.")
    change = (positive - negative).mean((0, 2), dtype=np.float64)  # templates seeds d
    per_template = change.mean(1)
    total = per_template.sum(0)
    own = np.empty(subjects.shape[:3], dtype=bool)
    right, left = np.empty(subjects.shape[1:3]), np.empty(subjects.shape[1:3])
    for t in range(n):
        direction = (total - per_template[t]) / (n - 1)
        length = float(np.linalg.norm(direction))
        if not length > 0:
            raise EmptyClass("the latents of both ends of an axis are equal on average: rates are not defined.")
        unit = (direction / length).astype(subjects.dtype)
        others = np.arange(n) != t
        ends = (positive[:, others] @ unit).mean((1, 2, 3)) + (negative[:, others] @ unit).mean((1, 2, 3))
        threshold = ends / 2
        own[:, t] = subjects[:, t] @ unit > threshold[:, None]
        right[t] = (positive[:, t] @ unit > threshold[:, None, None]).mean((0, 1))
        left[t] = (negative[:, t] @ unit <= threshold[:, None, None]).mean((0, 1))
    return Sides(subjects=own, positive=right, negative=left)


def rates_of(sides: Sides, sampling: Sampling, *, correct: bool = False) -> SubjectRates:
    """Return the rate of each subject with an interval.

    Without correction the interval is exact for a share of as many independent draws as the two-way bootstrap variance
    amounts to (Korn and Graubard 1998, Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data); of a share of 0 or 1, whose variance is not known, as many as there are seeds.
    With correction it is a two-way bootstrap interval of the corrected share.

    Args:
        correct: take prompts with an attribute as examples whose side is known, and correct the shares by how often
            they are on it (Rogan and Gladen 1978). It assumes that the model always draws what these prompts name.

    Raises: UninformativeReader with `correct`, if attribute prompts are on their own side no more often than by chance.
    """
    resamples = sampling.resamples(*sides.positive.shape)
    right, left = float(sides.positive.mean()), float(sides.negative.mean())
    values = sides.subjects.mean((1, 2))
    validity = None
    if resamples is not None:
        drawn = resamples.means((sides.positive + sides.negative) / 2)
        found = resamples.interval(sides.separability, drawn, level=sampling.level)
        validity = (max(0.0, found.low), min(1.0, found.high))
    low = high = None
    if correct:
        values, ends = _corrected(sides, values, resamples, sampling)
        low, high = (None, None) if ends is None else (ends[:, 0], ends[:, 1])
    elif resamples is not None:
        variances = resamples.means(sides.subjects.astype(np.float64)).var(0)
        cells = sides.subjects[0].size
        ends = np.array([
            _share_interval(float(rate), float(variance), cells, sides.subjects.shape[2], sampling.level)
            for rate, variance in zip(values, variances, strict=True)
        ])  # fmt: skip
        low, high = ends[:, 0], ends[:, 1]
    return SubjectRates(
        rate=values, low=low, high=high, separability=(right + left) / 2, separability_interval=validity,
        is_corrected=correct,
    )  # fmt: skip


def _corrected(
    sides: Sides, values: Float64[np.ndarray, " subjects"], resamples: TwoWayResamples | None, sampling: Sampling
) -> tuple[Float64[np.ndarray, " subjects"], Float64[np.ndarray, "subjects 2"] | None]:
    right, left = float(sides.positive.mean()), float(sides.negative.mean())
    if right + left <= 1:
        raise UninformativeReader(
            f"attribute prompts are on their own side in {right:.0%} and {left:.0%}: rates cannot be corrected."
        )
    corrected = np.clip((values + left - 1) / (right + left - 1), 0, 1)
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
