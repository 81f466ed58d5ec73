"""Dose-response of steering inside a model: what moves along the direction, along others, and away from the data.

Works on features of images that were generated at several strengths from the same prompts and noise, so that every
difference is paired.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from diffprobe.analysis.statistics import Interval, bootstrap_interval, mean_of
from diffprobe.core.errors import ConfigError, EmptyClass, NonFinite

Features = Float64[np.ndarray, "samples d"]


@dataclass(frozen=True, kw_only=True, eq=False)
class DataCloud:
    """Features of real samples: the unit of coordinates, and where the data lie.

    Raises: EmptyClass for fewer than `neighbours` + 2 samples; NonFinite.
    """

    features: Features
    """Features of real samples in the cell of the direction."""
    neighbours: int = 5
    """Nearest samples whose mean distance is that of a feature from the data."""

    def __post_init__(self) -> None:
        if len(self.features) < self.neighbours + 2:
            raise EmptyClass(f"{len(self.features)} samples of the store; at least {self.neighbours + 2} are needed.")
        if not np.isfinite(self.features).all():
            raise NonFinite("the features of the store have a number that is not finite.")

    def spread(self, vector: Float64[np.ndarray, " d"]) -> float:
        """Return the standard deviation of the data's coordinate along a vector. Raises: EmptyClass if it is 0."""
        found = float((self.features @ vector).std())
        if not found > 0:
            raise EmptyClass("the samples of the store do not vary along the direction, so it has no unit.")
        return found

    def distances(self, features: Features) -> Float64[np.ndarray, " samples"]:
        """Return the distance of features from the data, as a multiple of the median distance among the data.

        Each dimension is divided by its standard deviation in the data; the distance is the mean of those to the
        nearest samples. 1 is as near as data are to one another.
        """
        sd = self.features.std(0)
        kept = sd > 0
        data, given = self.features[:, kept] / sd[kept], features[:, kept] / sd[kept]
        among = _nearest(data, data, self.neighbours, skip=1)
        return _nearest(given, data, self.neighbours, skip=0) / float(np.median(among))


@dataclass(frozen=True, kw_only=True)
class Dose:
    """What one strength does."""

    strength: float
    """In standard deviations of the data along the direction."""
    moved: Mapping[str, Interval | float]
    """Name of a direction -> mean change of the coordinate along it relative to strength 0, in standard deviations of
    the data along that direction; without an interval for a single prompt."""
    distance: Interval | float
    """Mean distance from the data, as a multiple of that among the data."""


def dose_response(
    by_strength: Mapping[float, Features],
    directions: Mapping[str, Float64[np.ndarray, " d"]],
    cloud: DataCloud,
    prompts: Sequence[str],
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Dose, ...]:
    """Measure each strength, in their order.

    Args:
        by_strength: strength -> features of the images, in the same order for all; 0 is one of the strengths.
        directions: name -> unit vector; the first one is that which was steered.
        cloud: features of real samples.
        prompts: prompt of each image; intervals resample prompts.

    Raises: ConfigError without strength 0 or for another number of images; NonFinite; errors of `DataCloud.spread`.
    """
    if 0.0 not in by_strength:
        raise ConfigError("changes are relative to strength 0, which is not among the strengths.")
    for strength, features in by_strength.items():
        if len(features) != len(prompts):
            raise ConfigError(f"strength {strength:g}: {len(features)} images for {len(prompts)} prompts.")
        if not np.isfinite(features).all():
            raise NonFinite(f"strength {strength:g}: a feature of a generated image is not finite.")
    spreads = {name: cloud.spread(vector) for name, vector in directions.items()}

    def mean(values: Float64[np.ndarray, " samples"]) -> Interval | float:
        if len(set(prompts)) < 2:
            return float(values.mean())
        return bootstrap_interval(
            mean_of(values), prompts, n_resamples=n_resamples, level=level, seed=seed, method="expanded"
        )

    base = by_strength[0.0]
    return tuple(
        Dose(
            strength=strength,
            moved={
                name: mean((features - base) @ vector / spreads[name]) for name, vector in directions.items()
            },
            distance=mean(cloud.distances(features)),
        )
        for strength, features in sorted(by_strength.items())
    )  # fmt: skip


def _nearest(
    features: Features, data: Float64[np.ndarray, "data d"], k: int, *, skip: int
) -> Float64[np.ndarray, " samples"]:
    """Return the mean distance to the nearest k samples of the data, without the first `skip` of them."""
    found = np.empty(len(features))
    squares = np.square(data).sum(1)
    for start in range(0, len(features), 512):
        part = features[start : start + 512]
        squared = np.square(part).sum(1)[:, None] + squares - 2 * part @ data.T
        nearest = np.partition(squared, skip + k, axis=1)[:, : skip + k]
        ordered = np.sort(np.maximum(nearest, 0), axis=1)[:, skip:]
        found[start : start + len(part)] = np.sqrt(ordered).mean(1)
    return found
