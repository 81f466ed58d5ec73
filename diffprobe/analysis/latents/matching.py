"""Similar latents: nearest decoder rows of one dictionary or two, and correlation of activations on shared images.

All similarities are computed for blocks of latents, so that no [latents, latents] matrix is held.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diffprobe.core.errors import ConfigError, NonFinite

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_BLOCK = 512
"""Latents that are compared with all others at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """The most similar latents of each latent, the most similar first."""

    latent: Ints
    """Their numbers, (latents, n); -1 where there are fewer."""
    similarity: Floats
    """Cosine or correlation, -1..1, (latents, n); NaN where there are fewer."""


def nearest_in_dictionary(decoder: NDArray[np.float32], n: int) -> Matches:
    """Return the n other latents of the same dictionary with the largest absolute cosine of decoder rows.

    A row of length 0 has none and is none.

    Args:
        decoder: (latents, d).
        n: latents to return, at least 1.

    Raises: NonFinite.

    >>> nearest_in_dictionary(np.array([[1.0, 0], [0, 2], [3, 4]]), 1).latent.tolist()
    [[2], [2], [1]]
    """
    unit, known = _unit(decoder)
    return _nearest(unit, unit, known, known, n, same=True)


def match_decoders(decoder: NDArray[np.float32], other: NDArray[np.float32]) -> Matches:
    """Return the latent of another dictionary with the largest cosine, for each latent. Codes are never negative, so an
    opposite direction does not match.

    Args:
        decoder: (latents, d).
        other: (others, d).

    Raises: ConfigError for dictionaries of different width, NonFinite.
    """
    if decoder.shape[1] != other.shape[1]:
        raise ConfigError(
            f"decoders of width {decoder.shape[1]} and {other.shape[1]} have no cosine.",
            fix="compare autoencoders of one cell",
        )
    unit, known = _unit(decoder)
    unit_other, known_other = _unit(other)
    return _nearest(unit, unit_other, known, known_other, 1, same=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class SharedCodes:
    """Activations of one dictionary on some images, of which another dictionary has activations too."""

    row: Ints
    """Image of each activation, a position among the images, (activations,)."""
    latent: Ints
    """Its latent."""
    value: Floats
    """Its value, above 0."""
    n_latents: int
    n_images: int


def match_activations(codes: SharedCodes, other: SharedCodes) -> Matches:
    """Return the latent of another dictionary whose activations correlate best, for each latent.

    The Pearson correlation is over all images, with 0 where a latent is inactive. A latent whose activation does not
    vary has no match.

    Args:
        codes, other: activations on the same images in the same order.

    Raises: ConfigError for different or fewer than two images.
    """
    from scipy.sparse import csc_array

    n = codes.n_images
    if n != other.n_images or n < 2:
        raise ConfigError(f"correlation: {n} and {other.n_images} images; needed: the same images, at least 2.")
    a, b = (csc_array((one.value, (one.row, one.latent)), shape=(n, one.n_latents)) for one in (codes, other))
    (mean_a, sd_a), (mean_b, sd_b) = _moments(a), _moments(b)
    latent, similarity = np.full((codes.n_latents, 1), -1, dtype=np.int64), np.full((codes.n_latents, 1), np.nan)
    varies = sd_b > 0
    if varies.any():
        for start in range(0, codes.n_latents, _BLOCK):
            block = slice(start, min(start + _BLOCK, codes.n_latents))
            product = (a[:, block].T @ b).toarray() / n - mean_a[block, None] * mean_b
            scale = sd_a[block, None] * sd_b
            found = np.where(scale > 0, product / np.where(scale > 0, scale, 1.0), -np.inf)
            found[:, ~varies] = -np.inf
            best = found.argmax(1)
            value = found[np.arange(len(found)), best]
            kept = np.isfinite(value)
            latent[block, 0] = np.where(kept, best, -1)
            similarity[block, 0] = np.where(kept, np.clip(value, -1.0, 1.0), np.nan)
    return Matches(latent=latent, similarity=similarity)


def random_cosines(decoder: NDArray[np.float32], n_others: int, *, seed: int = 0) -> Floats:
    """Return the largest cosine of each latent with a dictionary of random directions: the control of a match.

    Args:
        decoder: (latents, d).
        n_others: number of random directions.
    """
    rows = np.random.default_rng(seed).standard_normal((n_others, decoder.shape[1])).astype(np.float32)
    return match_decoders(decoder, rows).similarity[:, 0]


def _moments(matrix: object) -> tuple[Floats, Floats]:
    """Return mean and standard deviation (divisor n) of the columns of a sparse array."""
    n = matrix.shape[0]  # type: ignore[attr-defined]
    mean = np.asarray(matrix.sum(axis=0)).ravel() / n  # type: ignore[attr-defined]
    square = np.asarray((matrix * matrix).sum(axis=0)).ravel() / n  # type: ignore[operator]
    variance = square - mean**2
    return mean, np.sqrt(np.where(variance > 1e-12 * square, variance, 0.0))


def _unit(decoder: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return rows of length 1, and which rows have a direction. Raises: NonFinite."""
    if not np.isfinite(decoder).all():
        bad = int(np.flatnonzero(~np.isfinite(decoder).all(1))[0])
        raise NonFinite(f"decoder row {bad} is not finite.")
    length = np.linalg.norm(decoder.astype(np.float64), axis=1, keepdims=True)
    unit = (decoder / np.where(length > 0, length, 1.0)).astype(decoder.dtype)
    return unit, length[:, 0] > 0


def _nearest(
    unit: NDArray[np.float32],
    other: NDArray[np.float32],
    known: NDArray[np.bool_],
    known_other: NDArray[np.bool_],
    n: int,
    *,
    same: bool,
) -> Matches:
    n_kept = min(n, len(other) - same)
    latent, cosine = np.full((len(unit), n), -1, dtype=np.int64), np.full((len(unit), n), np.nan)
    for start in range(0, len(unit) if n_kept > 0 else 0, _BLOCK):
        block = (unit[start : start + _BLOCK] @ other.T).astype(np.float64)
        size = np.abs(block) if same else block.copy()
        rows = np.arange(len(block))
        size[:, ~known_other] = -np.inf
        if same:
            size[rows, rows + start] = -np.inf
        best = np.argpartition(-size, n_kept - 1, axis=1)[:, :n_kept]
        best.sort(axis=1)  # so that equal ones come in order of number
        order = np.argsort(-np.take_along_axis(size, best, axis=1), axis=1, kind="stable")
        best = np.take_along_axis(best, order, axis=1)
        kept = np.isfinite(np.take_along_axis(size, best, axis=1)) & known[start : start + len(block), None]
        latent[start : start + len(block), :n_kept] = np.where(kept, best, -1)
        found = np.clip(np.take_along_axis(block, best, axis=1), -1.0, 1.0)
        cosine[start : start + len(block), :n_kept] = np.where(kept, found, np.nan)
    return Matches(latent=latent, similarity=cosine)
