"""The pointing game: is a latent largest where the part is that it stands for?

After Zhang et al. 2016 (1608.00507), who ask it of saliency maps; here the map is that of a latent's activations.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.certification.check import Check, Rule
from diffprobe.analysis.certification.dictionary import best_latents, mid_ranks
from diffprobe.analysis.statistics import Null, bootstrap_interval, mean_of
from diffprobe.core.errors import ConfigError, EmptyClass

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class SpatialCodes:
    """What a dictionary finds in feature maps.

    Attributes:
        largest: largest activation of each latent over the places of each sample's map, (samples, latents).
        place: where it is, row by row from 0; the first of equal ones, (samples, latents).
    """

    largest: Floats
    place: Ints


@dataclass(frozen=True, kw_only=True)
class PointingRules:
    """Thresholds and settings of the check."""

    least_pointing: float = 0.5
    """Least share of images in which the largest activation is on the part."""
    alpha: float = 0.05
    """Largest p of the masks of other images."""
    level: float = 0.95
    """Nominal coverage of intervals."""
    n_permutations: int = 200
    """Permutations of the images' masks."""
    n_resamples: int = 1000
    """Resamples of bootstrap intervals."""
    seed: int = 0
    """Seed of permutations and resamples."""


def covered_places(masks: Bools, size: tuple[int, int], tolerance: int) -> Bools:
    """Return at which places of a feature map a mask is: where it has a pixel in the place's part of the image.

    Args:
        masks: (samples, side, side), in pixels.
        size: height and width of the feature map, divisors of the side.
        tolerance: places around such a place, in all directions, that count too.

    Returns: (samples, height, width).
    Raises: ConfigError for a size that does not divide the side, or a negative tolerance.

    >>> mask = np.zeros((1, 4, 4), bool)
    >>> mask[0, 0, 3] = True
    >>> covered_places(mask, (2, 2), 0).astype(int).tolist()
    [[[0, 1], [0, 0]]]
    """
    n, rows, columns = masks.shape
    height, width = size
    if rows % height or columns % width or tolerance < 0:
        raise ConfigError(
            f"a feature map of {height} x {width} places, tolerance {tolerance}, for masks of {rows} x {columns}.",
            "needed: places that divide the pixels evenly, and a tolerance of at least 0",
        )
    blocks = masks.reshape(n, height, rows // height, width, columns // width)
    found: Bools = np.asarray(blocks.any(axis=(2, 4)), dtype=np.bool_)
    if not tolerance:
        return found
    wide = np.pad(found, ((0, 0), (tolerance, tolerance), (tolerance, tolerance)))
    span = range(2 * tolerance + 1)
    shifted = [wide[:, i : i + height, j : j + width] for i in span for j in span]
    near: Bools = np.asarray(np.any(shifted, axis=0), dtype=np.bool_)
    return near


@dataclass(frozen=True, kw_only=True, eq=False)
class PointingHits:
    """In which images the latent of the value is largest on the part that shows it."""

    rows: Ints
    """Places of the test samples whose value occurs in train, (samples,)."""
    hits: Floats
    """1 or 0 for each of them, (samples,)."""
    null: Null
    """Their share, among those with masks of other images."""


def pointing_hits(
    train: SpatialCodes, test: SpatialCodes, train_labels: Ints, test_labels: Ints, covered: Bools,
    rules: PointingRules, *, factor: str,
) -> PointingHits:  # fmt: skip
    """Return in which images the latent of the value is largest on the part that shows it.

    The latent of each value is the one with the best AUROC on train, by its largest activation in the map, so the masks
    have no influence on the choice. A sample on which it does not fire is a miss. The null takes the masks of other
    samples: it is what a latent scores that prefers a place, such as the middle of the image.

    Args:
        train_labels, test_labels: value of the factor of each sample, from 0.
        covered: of the test samples' masks, see `covered_places`, (samples, height, width).
        factor: name, for messages.

    Raises: ConfigError for masks of another number; EmptyClass if fewer than two values occur in both parts.
    """
    n = len(test_labels)
    if len(covered) != n or len(test.largest) != n:
        raise ConfigError(f"{len(test.largest)} codes and {len(covered)} masks for {n} labels.")
    values = [int(value) for value in np.intersect1d(train_labels, test_labels)]
    if len(values) < 2:
        raise EmptyClass(f"factor '{factor}': {len(values)} of its values occur in train and test; 2 are needed.")
    best = dict(zip(values, best_latents(mid_ranks(train.largest), train_labels, values), strict=True))
    rows = np.flatnonzero(np.isin(test_labels, values))
    latents = np.array([best[int(value)] for value in test_labels[rows]])
    fires, places = test.largest[rows, latents] > 0, test.place[rows, latents]
    flat = covered.reshape(n, -1)[rows]
    hits = (fires & flat[np.arange(len(rows)), places]).astype(np.float64)
    generator = np.random.default_rng(rules.seed)
    shares = [
        float((fires & flat[generator.permutation(len(rows)), places]).mean()) for _ in range(rules.n_permutations)
    ]
    null = Null(observed=float(hits.mean()), values=np.array(shares), n_permutations=rules.n_permutations)
    return PointingHits(rows=rows, hits=hits, null=null)


def pointing_check(
    train: SpatialCodes, test: SpatialCodes, train_labels: Ints, test_labels: Ints, covered: Bools,
    rules: PointingRules, *, factor: str, part: str,
) -> Check:  # fmt: skip
    """Measure how often the latent of a sample's value is largest on the part that shows the value.

    Args: see `pointing_hits`.
        factor, part: names, for the check.

    Raises: as `pointing_hits`.
    """
    pointed = pointing_hits(train, test, train_labels, test_labels, covered, rules, factor=factor)
    hits = pointed.hits
    found = bootstrap_interval(
        mean_of(hits), range(len(hits)), n_resamples=rules.n_resamples, level=rules.level, seed=rules.seed
    )
    height, width = covered.shape[1:]
    share = covered[pointed.rows].mean()
    rule = Rule(keys="least_pointing, alpha", low=rules.least_pointing, alpha=rules.alpha)
    return Check(
        name="pointing", target=factor, value=found.estimate, interval=(found.low, found.high), n=len(hits),
        null=pointed.null.describe(), rule=rule,
        what=f"share of images in which the latent of the value is largest, of {height} x {width} places, on the part "
        f"'{part}', which covers {share:.0%} of the places; null: masks of other images",
    )  # fmt: skip
