"""The causal link of an audit: the rate of the positive end in images by the strength of the direction.

Rates are read by a reader of images and corrected by its confusion; the images of all strengths have the same prompts
and noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from diffprobe.analysis.audit.association import Sampling
from diffprobe.analysis.certification.check import Check
from diffprobe.analysis.certification.steering import SteeredReadings, SteeringRules, steering_checks
from diffprobe.analysis.statistics import corrected_shares
from diffprobe.core.errors import UninformativeReader

NEGATIVE_CODE, POSITIVE_CODE = 0, 1
"""Codes of the ends of an axis in readings."""


@dataclass(frozen=True, kw_only=True)
class RateAtStrength:
    """How often images are perceived as the positive end at one strength."""

    strength: float
    """In standard deviations of the prompts along the direction."""
    read: float
    """Share as the reader gives it, 0..1."""
    rate: float
    """Corrected by the confusion, 0..1."""
    low: float
    """Lower end of its interval, which varies the images and the validation sample of the reader."""
    high: float
    """Upper end."""
    n: int
    """Number of images."""


@dataclass(frozen=True, kw_only=True)
class CausalLink:
    """What moving along the direction of one axis does to the images."""

    curves: Mapping[str, tuple[RateAtStrength, ...]]
    """Name of a steered direction -> its rates, ascending in strength; the axis's own direction first."""
    checks: tuple[Check, ...]
    """`steering_dose`, `steering_effect`, and `steering_collateral` for each other axis, as
    `certification.steering.steering_checks` measures them on what is read."""
    gain: float
    """Sensitivity + specificity - 1 of the reader, 0..1: a difference of true rates is the read one over this."""


def require_informative(confusion: Int64[np.ndarray, "2 2"], what: str) -> None:
    """Check that a reader separates both ends, before anything is generated.

    Args:
        confusion: counts of the validation sample by true (rows) and read end (columns).
        what: the reader and the axis, for the message.
    Raises: EmptyClass for an end without a validation image; UninformativeReader.
    """
    try:
        corrected_shares(np.array([1, 1]), confusion, n_resamples=200)
    except UninformativeReader as error:
        raise UninformativeReader(f"{what}: {error.what}", *error.details, fix=error.fix) from error


def causal_link(
    readings: Mapping[str, SteeredReadings],
    prompts: Sequence[str],
    confusion: Int64[np.ndarray, "2 2"],
    *,
    axis: str,
    sampling: Sampling,
) -> CausalLink:
    """Measure the rate by strength, along the axis's own direction and along random ones of equal norm.

    Intervals of rates take the drawn prompts as given; those of the effect and the dose resample prompts.

    Args:
        readings: name of a steered direction -> codes of each axis, `NEGATIVE_CODE` or `POSITIVE_CODE`, by strength.
            The axis's own direction is first, at least one random direction follows.
        prompts: prompt of each image.
        confusion: of the reader on this axis, counts by true (rows) and read end (columns).
        axis: name of the axis.
        sampling: level, resamples, permutations and seed.

    Raises: as `corrected_shares` and `steering_checks`.
    """
    curves: dict[str, tuple[RateAtStrength, ...]] = {}
    for name, one in readings.items():
        rows = []
        for stream, (strength, codes) in enumerate(zip(one.strengths, one.codes[axis], strict=True)):
            counts = np.bincount(codes, minlength=2)
            found = corrected_shares(
                counts, confusion, n_resamples=sampling.n_resamples, level=sampling.level, seed=sampling.seed,
                stream=stream,
            )  # fmt: skip
            rows.append(RateAtStrength(
                strength=strength, read=float(found.read[POSITIVE_CODE]), rate=float(found.corrected[POSITIVE_CODE]),
                low=float(found.low[POSITIVE_CODE]), high=float(found.high[POSITIVE_CODE]), n=len(codes),
            ))  # fmt: skip
        curves[name] = tuple(rows)
    own, *random = readings.values()
    rules = SteeringRules(
        level=sampling.level, n_resamples=sampling.n_resamples, seed=sampling.seed,
        n_permutations=min(sampling.n_permutations, 1999),
    )  # fmt: skip
    checks = steering_checks(own, random, prompts, rules, factor=axis, value=POSITIVE_CODE)
    shares = confusion / confusion.sum(1, keepdims=True)
    return CausalLink(curves=curves, checks=checks, gain=float(np.trace(shares) - 1))
