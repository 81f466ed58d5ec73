"""Exact AUROC and average precision from sparse codes: all inactive images are one tie below all active ones."""

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.sparse_codes import SparseCodes
from diffprobe.core.errors import ConfigError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def rank_gains(codes: SparseCodes) -> Floats:
    """Return by how much the mid-rank of each activation exceeds that of the latent's inactive images, (activations,).

    The inactive images of a latent have the mid-rank (inactive + 1) / 2.
    """
    starts = codes.starts
    begin, end = _ties(codes)
    n_active = codes.n_active[codes.latent]
    inactive = codes.n_images - n_active
    first = starts[codes.latent]  # the largest activation has the largest rank
    above, upto = begin - first, end - first
    mid = inactive + n_active - (above + upto - 1) / 2
    gains: Floats = mid - (inactive + 1) / 2
    return gains


def area_of_sums(gain: Floats, n_positive: Floats, n_active: Floats, n_images: int) -> Floats:
    """Return the AUROC from the sum of `rank_gains` over the positive images.

    Args:
        gain: sum over the positive images on which the latent is active.
        n_positive: number of positive images, of which some may be inactive.
        n_active: number of images on which the latent is active.
        n_images: number of all images.

    Returns: 0..1, NaN where all or no images are positive; the arguments are broadcast.
    """
    at_zero = (n_images - n_active + 1) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        area = (gain + n_positive * at_zero - n_positive * (n_positive + 1) / 2) / (
            n_positive * (n_images - n_positive)
        )
    return np.where((n_positive > 0) & (n_positive < n_images), area, np.nan)


def class_areas(codes: SparseCodes, labels: Ints, n_classes: int) -> Floats:
    """Return the AUROC of each latent's activation for each class against all others.

    Args:
        codes: activations of images.
        labels: class of each image, 0..n_classes-1, none missing, (images,).
        n_classes: number of classes.

    Returns: (latents, classes), 0.5 for a latent active on no image; NaN for a class that all or no images have.
    Raises: ConfigError for another number of labels or a label outside the range.
    """
    check_labels(codes, labels, n_classes)
    cell = codes.latent * n_classes + labels[codes.row]
    gain = weighted_counts(cell, rank_gains(codes), codes.n_latents * n_classes).reshape(-1, n_classes)
    n_class = np.bincount(labels, minlength=n_classes).astype(np.float64)
    return area_of_sums(gain, n_class[None], codes.n_active.astype(np.float64)[:, None], codes.n_images)


def average_precisions(codes: SparseCodes, labels: Ints, classes: Ints) -> Floats:
    """Return the average precision of each latent's activation for its class.

    The sum over thresholds of precision times the gain of recall, as scikit-learn computes it; images of equal
    activation, inactive ones among them, pass the threshold together.

    Args:
        codes: activations of images.
        labels: class of each image, (images,).
        classes: class of each latent, -1 for none, (latents,).

    Returns: (latents,), 0..1; NaN without a class or without an image of it.
    """
    check_labels(codes, labels, int(labels.max(initial=0)) + 1)
    positive = labels[codes.row] == classes[codes.latent]
    running = np.concatenate([[0], positive.cumsum()])
    begin, end = _ties(codes)
    first = codes.starts[codes.latent]
    precision = (running[end] - running[first]) / (end - first)
    part = weighted_counts(codes.latent, precision * positive, codes.n_latents)
    hits = weighted_counts(codes.latent, positive.astype(np.float64), codes.n_latents)
    frequency = np.bincount(labels, minlength=max(int(classes.max(initial=0)) + 1, 1))
    n_class = np.where(classes >= 0, frequency[np.maximum(classes, 0)], 0).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (part + (n_class - hits) * n_class / codes.n_images) / n_class
    return np.where(n_class > 0, found, np.nan)


def weighted_counts(numbers: Ints, weights: Floats, n: int) -> Floats:
    """Return the sum of the weights of each number 0..n-1, float64 (n,)."""
    return np.bincount(numbers, weights=weights, minlength=n).astype(np.float64)


def check_labels(codes: SparseCodes, labels: Ints, n_classes: int) -> None:
    """Check that each image has a label. Raises: ConfigError."""
    if labels.shape != (codes.n_images,):
        raise ConfigError(f"labels of shape {labels.shape} for {codes.n_images} images.")
    if len(labels) and not (0 <= labels.min() and labels.max() < n_classes):
        raise ConfigError(
            f"labels {labels.min()}..{labels.max()} of {n_classes} classes.",
            "images without a label are left out first",
        )


def _ties(codes: SparseCodes) -> tuple[Ints, Ints]:
    """Return where the equal activations of the same latent begin and end, for each activation."""
    if not len(codes.value):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    new = np.r_[True, (np.diff(codes.latent) != 0) | (np.diff(codes.value) != 0)]
    edges = np.r_[np.flatnonzero(new), len(new)].astype(np.int64)
    block = new.cumsum() - 1
    return edges[block], edges[block + 1]
