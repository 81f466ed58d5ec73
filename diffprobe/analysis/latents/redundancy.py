"""Latents that repeat each other: the nearest decoder row, and absorption."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.analysis.latents.best_value import LabelledCodes
from diffprobe.analysis.latents.matching import nearest_in_dictionary

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Nearest:
    """The most similar other decoder row of each latent."""

    latent: Ints
    """Its number; -1 for a single latent or a row of length 0."""
    cosine: Floats
    """The cosine, 0..1 in size and with its sign; NaN without one."""


def nearest_rows(rows: NDArray[np.float32]) -> Nearest:
    """Return the other decoder row with the largest absolute cosine, for each latent.

    A row that is 0, as of a latent that was never trained, has none and is none.

    Args:
        rows: decoder, (latents, d).

    Raises: NonFinite.

    >>> nearest_rows(np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])).cosine.round(3).tolist()
    [0.6, 0.8, 0.8]
    """
    found = nearest_in_dictionary(rows, 1)
    return Nearest(latent=found.latent[:, 0], cosine=found.similarity[:, 0])


def precise_latents(n_of_value: Floats, n_active: Floats, least_precision: float) -> NDArray[np.bool_]:
    """Return whether latents are of a value: whether at least that share of their active images has it.

    Args:
        n_of_value: images of the value on which each latent is active, of any shape.
        n_active: all images on which it is active; broadcast.
        least_precision: share, 0..1. A latent that is never active is of no value.
    """
    found: NDArray[np.bool_] = (n_active > 0) & (n_of_value >= least_precision * n_active)
    return found


def absorption(
    train: LabelledCodes, test: LabelledCodes, value: Ints, n_values: int, *, least_precision: float = 0.9
) -> Floats:
    """Return the share of a latent's value that it misses while another latent of that value is active.

    After Chanin et al. 2024 (2409.14507, A is for absorption), who use a probe and ablations; here as in
    `certify dictionary`: a latent is of a value if, on train, at least `least_precision` of its active images have it.

    Args:
        train, test: codes of two splits.
        value: value of each latent, chosen on train, -1 for none, (latents,).
        n_values: number of values.
        least_precision: see `precise_latents`.

    Returns: share of the test images with the value on which the latent is inactive and another latent of the value is
        active, 0..1, (latents,); NaN without a value or an image of it, or for a latent active on no test image.
    """
    shape = (train.codes.n_latents, n_values)
    of_value = np.zeros(shape)
    np.add.at(of_value, (train.codes.latent, train.labels[train.codes.row]), 1.0)
    precise = precise_latents(of_value, train.codes.n_active[:, None].astype(np.float64), least_precision)
    codes, labels = test.codes, test.labels
    has = np.zeros(codes.n_images, dtype=bool)  # whether a latent of the image's value is active
    has[codes.row[precise[codes.latent, labels[codes.row]]]] = True
    n_value = np.bincount(labels, minlength=n_values)
    n_has = np.bincount(labels[has], minlength=n_values)
    own = (labels[codes.row] == value[codes.latent]) & has[codes.row]
    n_own = np.bincount(codes.latent[own], minlength=codes.n_latents)
    known = (value >= 0) & (n_value[np.maximum(value, 0)] > 0) & (codes.n_active > 0)
    at = np.maximum(value, 0)
    return np.where(known, (n_has[at] - n_own) / np.maximum(n_value[at], 1), np.nan)
