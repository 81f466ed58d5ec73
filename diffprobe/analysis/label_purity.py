"""Purity, entropy and AUROC of the classes of a latent's images: measures that do not depend on the class numbering.

The class of a latent is chosen on one split (`top_classes`), and scored on another (`purity`, `one_vs_rest`). Arrays
have one row per latent, in the order of a ranking; -1 in place of a class means that a latent has fewer images.
"""

import math

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError

_BLOCK = 64
"""Latents whose activations are ranked at once."""


def top_classes(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the most frequent class of each latent's top images.

    Of equally frequent classes, the one that the highest-ranking image has: the choice does not depend on the ids.

    Args:
        labels: class of each top image, the most active first, int64 (latents, images); -1 for none.
    Returns: int64 (latents,), -1 for a latent without images.

    >>> top_classes(np.array([[7, 2, 2, 7], [-1, -1, -1, -1]])).tolist()
    [7, -1]
    """
    frequency = np.where(labels >= 0, _frequency(labels), -1)
    first = frequency.argmax(1)  # argmax takes the first of equal ones
    return np.take_along_axis(labels, first[:, None], axis=1)[:, 0]


def purity(labels: NDArray[np.int64], classes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the share of each latent's top images that are of its class: 0..1, NaN without images or class.

    >>> purity(np.array([[1, 1, 0, -1]]), np.array([1])).round(3).tolist()
    [0.667]
    """
    n = (labels >= 0).sum(1)
    hits = ((labels == classes[:, None]) & (labels >= 0)).sum(1)
    return np.where((n > 0) & (classes >= 0), hits / np.maximum(n, 1), np.nan)


def normalised_entropy(labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float64]:
    """Return the entropy of the classes of each latent's top images, as a share of the largest that is possible.

    The largest entropy of n images is log(min(n, n_classes)).

    Args:
        labels: class of each top image, int64 (latents, images); -1 for none.
        n_classes: number of classes of the data set, at least 2.
    Returns: (latents,), 0 (one class) to 1; NaN for fewer than two images.

    >>> normalised_entropy(np.array([[0, 0, 1, 1], [5, 5, 5, -1]]), 2).tolist()
    [1.0, 0.0]
    """
    known = labels >= 0
    n = known.sum(1)
    # -sum p log p = log n - mean over images of log(images of the same class)
    logs = np.where(known, np.log(np.maximum(_frequency(labels), 1)), 0.0).sum(1) / np.maximum(n, 1)
    largest = np.log(np.maximum(np.minimum(n, n_classes), 2))
    return np.where(n >= 2, np.maximum(np.log(np.maximum(n, 1)) - logs, 0.0) / largest, np.nan)


def _frequency(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many images of the same latent have the class of each image."""
    found: NDArray[np.int64] = (labels[:, :, None] == labels[:, None, :]).sum(2)
    return found


def expected_largest_share(frequencies: NDArray[np.int64], n: int) -> float:
    """Return the expected share of the most frequent class among `n` images whose classes are drawn at random.

    Exact: P(no class more than j times) is n! times the coefficient of x^n in the product over classes of the sums of
    (p x)^k / k! for k up to j.

    Args:
        frequencies: number of images of each class.
        n: images per latent, at least 1.

    >>> round(expected_largest_share(np.array([1, 1]), 2), 12)
    0.75
    """
    share = frequencies[frequencies > 0] / frequencies.sum()
    at_most = np.zeros(n + 1)
    for j in range(1, n + 1):
        product = np.array([1.0])
        for p in share.tolist():
            product = np.convolve(product, [p**k / math.factorial(k) for k in range(j + 1)])[: n + 1]
        at_most[j] = math.factorial(n) * product[n] if len(product) > n else 0.0
    return float((np.arange(1, n + 1) * np.diff(at_most)).sum()) / n


def expected_entropy(frequencies: NDArray[np.int64], n: int) -> float:
    """Return the expected `normalised_entropy` of `n` images whose classes are drawn at random.

    Exact: a sum over classes and over binomial counts.

    Args:
        frequencies: number of images of each class, of all classes of the data set.
        n: images per latent, at least 2.

    >>> round(expected_entropy(np.array([1, 1]), 2), 12)
    0.5
    """
    from scipy.stats import binom

    counts = np.arange(1, n + 1)
    share = frequencies[frequencies > 0] / frequencies.sum()
    terms = binom.pmf(counts, n, share[:, None]) * (counts / n) * np.log(n / counts)
    return float(terms.sum()) / math.log(min(n, len(frequencies)))


class OneVersusRest:
    """AUROC of each latent's activation for its class against all others.

    Args:
        activations: activation of each latent on each image, 0 where it is not active, (images, latents). Replaced by
            ranks in place, to hold one such array.
        classes: class of each latent, -1 for none, int64 (latents,).

    Ties count by half: a latent that is active on no image has 0.5.
    """

    def __init__(self, activations: NDArray[np.float32], classes: NDArray[np.int64]) -> None:
        from scipy.stats import rankdata

        if activations.shape[1:] != classes.shape:
            raise ConfigError(f"AUROC: {len(classes)} classes for activations of shape {activations.shape}.")
        for start in range(0, activations.shape[1], _BLOCK):
            block = slice(start, start + _BLOCK)
            activations[:, block] = rankdata(activations[:, block], axis=0)
        self._ranks, self._classes = activations, classes  # half ranks are exact in float32 up to 8 million images

    def score(self, labels: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the AUROC for some labels of the images, (latents,).

        NaN for a latent without a class, or whose class none or all of the images have.

        Raises: ConfigError for another number of labels.
        """
        if len(labels) != len(self._ranks):
            raise ConfigError(f"AUROC: {len(labels)} labels for {len(self._ranks)} images.")
        found = np.full(len(self._classes), np.nan)
        for class_id in np.unique(self._classes[self._classes >= 0]).tolist():
            images, latents = np.flatnonzero(labels == class_id), np.flatnonzero(self._classes == class_id)
            n, rest = len(images), len(labels) - len(images)
            if n and rest:
                total = self._ranks[np.ix_(images, latents)].sum(0, dtype=np.float64)
                found[latents] = (total - n * (n + 1) / 2) / (n * rest)
        return found
