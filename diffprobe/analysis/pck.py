"""The percentage of correct keypoints, with its variant always named: per point or per image, by box or by image.

A match is correct if it is at most alpha * size from the true point. `size` is the longer side of the box around the
object of the target image, or of the image. Per point, all points count equally; per image, all pairs of images do.
Numbers of two variants cannot be compared: on SPair-71k they differ by 7 to 9 points for one and the same method.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.statistics import SumStatistic, ratio
from diffprobe.core.errors import ConfigError

Per = Literal["point", "image"]
Size = Literal["image", "box"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to compute PCK."""

    alpha: float
    """Share of the size within which a match is correct."""
    per: Per
    """What counts equally."""
    size: Size
    """What alpha is a share of."""

    @property
    def name(self) -> str:
        """Name in records, for example "pck@0.1_per_point_box"."""
        return f"pck@{self.alpha:g}_per_{self.per}_{self.size}"


@dataclass(frozen=True, kw_only=True)
class Matches:
    """The matches of all points of all pairs, in the order of the pairs."""

    pair: NDArray[np.int64]
    """Number of the pair of each point, from 0; every pair has a point."""
    name: tuple[str, ...]
    """Name of each point."""
    true: NDArray[np.float64]
    """Where the point is in the target image, (points, 2), pixels."""
    found: NDArray[np.float64]
    """The match, (points, 2), pixels."""
    box: NDArray[np.float64] | None
    """Longer side of the box in the target image, by point; None without boxes."""
    resolution: int
    """Side of the images in pixels."""

    def __post_init__(self) -> None:
        n = len(self.name)
        if not n or {len(self.pair), len(self.true), len(self.found)} != {n} or self.true.shape != self.found.shape:
            raise ConfigError(f"PCK of {n} points, {len(self.pair)} pairs, {len(self.found)} matches.")

    def limits(self, variant: Variant) -> NDArray[np.float64]:
        """Return the largest distance of a correct match of each point, in pixels.

        Raises: ConfigError for a share of a box if the images have no boxes.
        """
        if variant.size == "image":
            return np.full(len(self.name), variant.alpha * self.resolution)
        if self.box is None:
            raise ConfigError(
                f"{variant.name}: the images have no boxes.", fix="box_parts, or the variant of the image"
            )
        return variant.alpha * self.box

    def correct(self, variant: Variant) -> NDArray[np.float64]:
        """Return 1 for each correct match, 0 for the others."""
        distance = np.linalg.norm(self.found - self.true, axis=1)
        return (distance <= self.limits(variant)).astype(np.float64)

    def chance(self, variant: Variant) -> NDArray[np.float64]:
        """Return the probability that a pixel drawn at random is correct, for each point."""
        centres = np.arange(0.5, self.resolution)
        found = np.empty(len(self.name))
        for i, ((x, y), limit) in enumerate(zip(self.true, self.limits(variant), strict=True)):
            found[i] = (np.hypot(centres[None, :] - x, centres[:, None] - y) <= limit).mean()
        return found

    def statistic(self, values: NDArray[np.float64], per: Per) -> SumStatistic:
        """Return the mean of a value of each point as a statistic over pairs."""
        n = int(self.pair.max()) + 1
        counts = np.bincount(self.pair, minlength=n).astype(np.float64)
        sums = np.bincount(self.pair, weights=values, minlength=n).astype(np.float64)
        if per == "image":
            sums, counts = sums / counts, np.ones(n)
        return SumStatistic(parts=np.stack([sums, counts], axis=1), value=ratio)

    def by_name(self, values: NDArray[np.float64]) -> dict[str, float]:
        """Return the mean of a value of each point over the points of each name."""
        names = np.array(self.name)
        return {name: float(values[names == name].mean()) for name in sorted(set(self.name))}


def side_confusion(
    matches: Matches, partners: NDArray[np.float64], known: Sequence[bool] | NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return, for points that have a partner on the other side, whether the match is nearer to the partner.

    The failure that Telling Left from Right (Zhang et al. 2024, 2311.17034) describes: a left foot that is matched with
    the right one. At 0.5, the two sides are not distinguished.

    Args:
        partners: where the partner of each point is in the target image, (points, 2).
        known: whether a point has one.

    Returns: 1 or 0 for each point, and which points count.
    """
    chosen = np.asarray(known, dtype=np.bool_)
    own = np.linalg.norm(matches.found - matches.true, axis=1)
    other = np.linalg.norm(matches.found - partners, axis=1)
    return (other < own).astype(np.float64), chosen
