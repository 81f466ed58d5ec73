"""Success of steering at matched collateral change: how often the wanted value appears when as little else changes.

Each method gives a curve over its strengths: the share of images that show the wanted value (success), and the share of
other factors whose reading changes (collateral). Strengths of different methods have different units, so methods are
compared at equal collateral, along the straight lines between the points of the curve. All images have the same prompts
and noise, so every difference between methods is paired.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import Interval, PairedResamples, bootstrap_interval, mean_of
from diffprobe.core.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeringCurve:
    """What one method does, image by image.

    Attributes:
        strengths: ascending from 0, which is the untouched model, (strengths,).
        success: whether each image shows the wanted value, 0 or 1, or a mean of several such, (strengths, images).
        collateral: share of the other factors whose reading differs from that at strength 0, (strengths, images).

    Raises: ConfigError for strengths or arrays of another form.
    """

    strengths: tuple[float, ...]
    success: Floats
    collateral: Floats

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.strengths, self.strengths[1:], strict=False))
        if len(self.strengths) < 2 or self.strengths[0] != 0 or not rising:
            raise ConfigError(f"strengths={list(self.strengths)} of a curve: ascending from 0, at least two.")
        shapes = {self.success.shape, self.collateral.shape}
        if len(shapes) > 1 or self.success.ndim != 2 or len(self.success) != len(self.strengths):
            raise ConfigError(
                f"a curve has arrays of shapes {self.success.shape} and {self.collateral.shape}.",
                f"needed: ({len(self.strengths)}, images) for both",
            )
        if self.collateral[0].any():
            raise ConfigError("collateral is relative to strength 0, where it has to be 0.")

    @classmethod
    def of_readings(
        cls, strengths: Sequence[float], codes: "dict[str, Ints]", *, factor: str, value: int
    ) -> "SteeringCurve":
        """Return the curve of what a reader found.

        Args:
            codes: factor -> code of the value that is read, (strengths, images).
            factor, value: what is wanted.
        """
        others = [name for name in codes if name != factor]
        changed = np.mean([codes[name] != codes[name][:1] for name in others], axis=0)
        return cls(strengths=tuple(strengths), success=(codes[factor] == value).astype(np.float64), collateral=changed)

    @classmethod
    def mean(cls, curves: "Sequence[SteeringCurve]") -> "SteeringCurve":
        """Return the mean of curves with equal strengths, image by image. Raises: ConfigError."""
        if len({curve.strengths for curve in curves}) != 1:
            raise ConfigError("curves with different strengths have no mean.")
        return cls(
            strengths=curves[0].strengths,
            success=np.mean([curve.success for curve in curves], axis=0),
            collateral=np.mean([curve.collateral for curve in curves], axis=0),
        )


@dataclass(frozen=True, kw_only=True)
class Matched:
    """One method at one level of collateral."""

    level: float
    """Collateral that is allowed."""
    success: Interval
    """Largest success on the curve with at most this collateral."""
    minus_reference: Interval | None
    """The same minus that of the reference method, paired; None for the reference."""
    reaches: bool
    """Whether the curve has a point with this collateral or more; otherwise the method does less than is allowed."""


def success_at(success: Floats, collateral: Floats, level: float) -> float:
    """Return the largest success with at most some collateral, along the lines between the points of a curve.

    Args:
        success, collateral: means by strength, from strength 0 on, (strengths,).
        level: collateral that is allowed, at least 0.

    >>> success_at(np.array([0.25, 0.5, 1.0]), np.array([0.0, 0.25, 0.75]), 0.5)
    0.75
    """
    best = float(success[collateral <= level].max(initial=-np.inf))
    for i in range(len(success) - 1):
        low, high = collateral[i], collateral[i + 1]
        if (low <= level) != (high <= level):
            share = (level - low) / (high - low)
            best = max(best, float(success[i] + share * (success[i + 1] - success[i])))
    return best


def matched(
    curves: "dict[str, SteeringCurve]",
    prompts: Sequence[Hashable],
    *,
    reference: str,
    level: float | None,
    n_resamples: int = 1000,
    coverage: float = 0.95,
    seed: int = 0,
) -> dict[str, Matched]:
    """Compare methods at equal collateral.

    Intervals resample prompts; the level of the reference, the curve and its best point are found anew in each
    resample. The best point is chosen on the images on which it is reported, for every method alike, which favours
    methods with many strengths.

    Args:
        curves: name -> curve, all of the same images.
        prompts: prompt of each image.
        reference: the method that others are compared with.
        level: collateral that is allowed; None for that of the reference at its largest strength.

    Raises: ConfigError for a reference without a curve, or curves of other images; TooFewGroups for one prompt.
    """
    if reference not in curves:
        raise ConfigError(f"the reference '{reference}' has no curve; there are: {', '.join(curves)}.")
    if {curve.success.shape[1] for curve in curves.values()} != {len(prompts)}:
        raise ConfigError(f"curves of another number of images than the {len(prompts)} prompts.")
    resamples = PairedResamples(prompts, n_resamples=n_resamples, seed=seed)
    own = curves[reference]

    def allowed(rows: Ints) -> float:
        return float(own.collateral[-1, rows].mean()) if level is None else level

    def best(rows: Ints, *, curve: SteeringCurve) -> float:
        return success_at(curve.success[:, rows].mean(1), curve.collateral[:, rows].mean(1), allowed(rows))

    values = {name: resamples.of(partial(best, curve=curve)) for name, curve in curves.items()}
    zero = np.zeros_like(values[reference])
    everything = np.arange(len(prompts), dtype=np.int64)
    at = allowed(everything)
    return {
        name: Matched(
            level=at,
            success=resamples.interval(found, zero, level=coverage, method="expanded"),
            minus_reference=None if name == reference else resamples.interval(
                found, values[reference], level=coverage, method="expanded"
            ),
            reaches=bool((curves[name].collateral.mean(1) >= at).any()),
        )
        for name, found in values.items()
    }  # fmt: skip


def point_intervals(
    curve: SteeringCurve, prompts: Sequence[Hashable], *, n_resamples: int = 1000, coverage: float = 0.95, seed: int = 0
) -> list[tuple[Interval, Interval]]:
    """Return the intervals of success and collateral at each strength, with prompts resampled.

    Raises: TooFewGroups for one prompt.
    """
    settings = {"n_resamples": n_resamples, "level": coverage, "seed": seed}
    return [
        (
            bootstrap_interval(mean_of(success), prompts, method="expanded", **settings),  # type: ignore[arg-type]
            bootstrap_interval(mean_of(collateral), prompts, method="expanded", **settings),  # type: ignore[arg-type]
        )
        for success, collateral in zip(curve.success, curve.collateral, strict=True)
    ]
