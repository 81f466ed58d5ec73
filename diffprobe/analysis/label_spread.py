"""sigma_label: the standard deviation of the class ids of a latent's top images, with what it is by chance.

The class ids are integers that a data set numbers in an arbitrary order, often alphabetical. The measure is therefore
reported with two references: its expectation for labels drawn at random, and its values when the classes are numbered
anew. `label_purity.py` has measures that do not depend on the numbering.

Source: Kim, Thomas, Ghadiyaram 2025, "Revelio" (arXiv 2411.16725), section 4 and the released code.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, EmptyClass

_NODES = 12
"""Gauss-Legendre nodes of one panel of the integral over log t."""


def label_spread(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the unbiased standard deviation of the class ids of each latent's top images.

    Args:
        labels: class id of each top image, int64 (latents, images); -1 where a latent has fewer images.
    Returns: (latents,), in class ids; NaN for fewer than two images.

    >>> label_spread(np.array([[0, 2], [3, -1]])).tolist()
    [1.4142135623730951, nan]
    """
    known = labels >= 0
    n = known.sum(1)
    values = np.where(known, labels, 0).astype(np.float64)
    mean = values.sum(1) / np.maximum(n, 1)
    square = (np.where(known, values - mean[:, None], 0.0) ** 2).sum(1)
    found: NDArray[np.float64] = np.where(n >= 2, np.sqrt(square / np.maximum(n - 1, 1)), np.nan)
    return found


def chance_spread(frequencies: Sequence[float] | NDArray[np.float64] | NDArray[np.int64], n: int) -> float:
    """Return the expected spread of the class ids of `n` images whose classes are drawn at random.

    The expectation of the root V of a variance is an integral over t of (1 - E[exp(-t V)]) / t^1.5. For V the unbiased
    variance of n independent draws, E[exp(-t V)] is in turn an integral over one number mu, of the n-th power of the
    mixture of Gaussians around the classes: exp(-t V) is a square that is completed by mu. Both are summed numerically;
    nothing is drawn. The relative error is below 1e-7 (compared with sums over all outcomes in the tests).

    Args:
        frequencies: share or number of images of each class, in the order of their ids.
        n: images per latent, at least 2.
    Returns: the expectation, in class ids.
    Raises: ConfigError for fewer than two images, EmptyClass if no class has an image.

    >>> round(chance_spread([1] * 37, 10), 2)
    10.53
    """
    share = np.asarray(frequencies, dtype=np.float64)
    if n < 2:
        raise ConfigError(f"chance spread: n={n}; allowed: at least 2 images.")
    if share.ndim != 1 or not (share >= 0).all() or not share.sum() > 0:
        raise EmptyClass(f"chance spread: none of {len(share)} classes has an image.")
    share = share / share.sum()
    ids = np.arange(len(share))
    variance = float(share @ (ids - share @ ids) ** 2)
    if variance == 0:
        return 0.0
    # Below the first end 1 - E[exp(-tV)] is t E[V] to 1e-7; above the last one only V = 0 is left (V >= 1/n otherwise).
    first, last = 1e-7 / variance, 40.0 * n
    total = variance * 2 * math.sqrt(first) + (1 - float((share**n).sum())) * 2 / math.sqrt(last)
    ends = np.linspace(math.log(first), math.log(last), math.ceil(math.log(last / first)) + 1)
    x, weight = np.polynomial.legendre.leggauss(_NODES)
    for low, high in zip(ends[:-1], ends[1:], strict=True):
        for u, w in zip((low + high) / 2 + (high - low) / 2 * x, (high - low) / 2 * weight, strict=True):
            total += w * math.exp(-u / 2) * (1 - _transform(share, n, math.exp(u)))
    return float(total / (2 * math.sqrt(math.pi)))


def _transform(share: NDArray[np.float64], n: int, t: float) -> float:
    """Return E[exp(-t V)] of the unbiased variance V of n class ids."""
    a = t / (n - 1)
    width = 1 / math.sqrt(2 * n * a)  # standard deviation of the n-th power of one Gaussian
    ids = np.arange(len(share))
    if width >= 2:  # wider than the distance of ids: points that are whole numbers, beyond the ids too
        step, beyond = math.floor(width / 2), math.ceil(9 * width)
        points = np.arange(-beyond, len(share) + beyond, step, dtype=np.float64)
        mixture = np.exp(-a * (points[:, None] - ids) ** 2) @ share
        return float((mixture**n).sum()) * step * math.sqrt(n * a / math.pi)
    per_id = math.ceil(2 / width)  # points between two ids
    reach, total = math.ceil(9 * width * math.sqrt(n)), 0.0
    for offset in range(per_id):
        mixture = np.convolve(share, np.exp(-a * (np.arange(-reach, reach + 1) + offset / per_id) ** 2))
        total += float((mixture**n).sum())
    return total / per_id * math.sqrt(n * a / math.pi)


def renumbered_spread(
    labels: NDArray[np.int64], n_classes: int, n: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Return the spread of each latent after the classes are numbered anew at random, `n` times.

    Args:
        labels: as in `label_spread`.
        n_classes: number of classes.
        n: number of numberings.
        generator: source of the numberings.
    Returns: (n, latents).
    """
    found = np.empty((n, len(labels)))
    for i in range(n):
        numbering = np.append(generator.permutation(n_classes), -1)  # -1 stays -1
        found[i] = label_spread(numbering[labels])
    return found


def mean_of_first(values: NDArray[np.float64], tops: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the mean over the first m latents for each m of `tops`, without those that are NaN.

    Args:
        values: (..., latents), in the order of the ranking.
        tops: numbers of latents; all of them where there are fewer.
    Returns: means (..., tops), NaN where no latent has a value; and the number of latents in each mean, of one shape.

    >>> [part.tolist() for part in mean_of_first(np.array([1.0, np.nan, 4.0]), [1, 2, 100])]
    [[1.0, 1.0, 2.5], [1, 1, 2]]
    """
    known = ~np.isnan(values)
    sums = np.cumsum(np.where(known, values, 0.0), axis=-1)
    counts = np.cumsum(known, axis=-1)
    last = np.minimum(np.asarray(tops), values.shape[-1]) - 1
    n = counts[..., last].astype(np.int64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., last] / n, n
