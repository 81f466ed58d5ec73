"""The positive activations of a split, gathered from a stream of codes in bounded memory.

Rank statistics need all activations of a latent, and permutations need all images. Both are taken on a sample of images
of bounded size: those with the smallest hash of their key, which depends neither on the order of the stream nor on its
split into batches and processes. Memory is that of `max_images` codes of k latents each, and never [images, latents].
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

MAX_IMAGES = 20_000
"""Largest number of images of a sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseCodes:
    """Positive activations of images, sorted by latent, then by activation (the largest first), then by image."""

    keys: tuple[str, ...]
    """Key of each image, ascending."""
    row: NDArray[np.int64]
    """Image of each activation, a position in `keys`, (activations,)."""
    latent: NDArray[np.int64]
    """Latent of each activation, (activations,)."""
    value: NDArray[np.float64]
    """Each activation, above 0, (activations,)."""
    n_latents: int
    """Number of latents, with those that are never active."""
    n_seen: int
    """Images of the stream, of which `keys` may be a sample."""

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.keys)

    @property
    def starts(self) -> NDArray[np.int64]:
        """Position of the first activation of each latent, and their number as the last entry, (latents + 1,)."""
        return np.searchsorted(self.latent, np.arange(self.n_latents + 1)).astype(np.int64)

    @property
    def n_active(self) -> NDArray[np.int64]:
        """Number of images on which each latent is active, (latents,)."""
        return np.diff(self.starts)

    def take(self, kept: NDArray[np.bool_]) -> "SparseCodes":
        """Return the codes of some of the images.

        Args:
            kept: whether each image stays, (images,).
        """
        place = np.where(kept, kept.cumsum() - 1, -1)
        stays = kept[self.row]
        return SparseCodes(
            keys=tuple(key for key, stay in zip(self.keys, kept.tolist(), strict=True) if stay),
            row=place[self.row[stays]], latent=self.latent[stays], value=self.value[stays], n_latents=self.n_latents,
            n_seen=self.n_seen,
        )  # fmt: skip

    def top_rows(self, n: int) -> NDArray[np.int64]:
        """Return the n most active images of each latent, int64 (latents, n); -1 where there are fewer.

        Equal activations are ordered by key.
        """
        place = np.arange(len(self.latent)) - self.starts[self.latent]
        first = place < n
        found = np.full((self.n_latents, n), -1, dtype=np.int64)
        found[self.latent[first], place[first]] = self.row[first]
        return found


class CodeCollector:
    """Collects the codes of images, one code per image.

    Args:
        n_latents: number of latents of the code.
        max_images: largest number of images that are kept.

    >>> collector = CodeCollector(n_latents=3)
    >>> collector.update(torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([[0, 1], [0, 2]]), ["a", "b"])
    >>> codes = collector.result()
    >>> codes.latent.tolist(), codes.row.tolist(), codes.value.tolist()
    ([0, 0, 2], [1, 0, 1], [2.0, 1.0, 3.0])
    """

    def __init__(self, n_latents: int, max_images: int = MAX_IMAGES) -> None:
        if n_latents < 1 or max_images < 1:
            raise ConfigError(f"codes: n_latents={n_latents}, max_images={max_images}; allowed: at least 1.")
        self.n_latents, self.max_images, self.n_seen = n_latents, max_images, 0
        self._keys: list[str] = []
        self._parts: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]] = []
        self._last: tuple[bytes, str] | None = None  # hash and key beyond which an image is not in the sample

    def update(self, values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], keys: Sequence[str]) -> None:
        """Add the codes of a batch of images.

        Args:
            values: activation of each listed latent; one that is not positive is not active.
            indices: number of each listed latent, no latent twice in a row.
            keys: key of each image, none seen before.

        Raises: ConfigError for other shapes, or a latent that is outside the code or twice in a row; NonFinite.
        """
        if values.ndim != 2 or values.shape != indices.shape or len(keys) != len(values):
            raise ConfigError(
                "a batch of codes needs values and indices of one shape [batch, k] and one key per row.",
                f"values: {tuple(values.shape)}  indices: {tuple(indices.shape)}  keys: {len(keys)}",
            )
        activation = values.detach().to("cpu", torch.float64).numpy()
        latents = indices.detach().cpu().numpy().astype(np.int64)
        finite = np.isfinite(activation).all(1)
        if not finite.all():
            raise NonFinite(f"the code of image '{keys[int(np.flatnonzero(~finite)[0])]}' contains NaN or infinity.")
        if latents.size and not (0 <= latents.min() and latents.max() < self.n_latents):
            raise ConfigError(f"latents {latents.min()}..{latents.max()} in a code; allowed: 0..{self.n_latents - 1}.")
        self.n_seen += len(keys)
        wanted = [i for i, key in enumerate(keys) if self._last is None or (key_hash(key), key) <= self._last]
        kept = np.array(wanted, dtype=np.int64)
        activation, latents = activation[kept], latents[kept]
        row, column = np.nonzero(activation > 0)
        found = latents[row, column]
        if len(np.unique(row * self.n_latents + found)) < len(found):
            raise ConfigError("a code lists a latent twice for one image; join its places by their maximum first.")
        self._parts.append((row + len(self._keys), found, activation[row, column]))
        self._keys += [keys[i] for i in wanted]
        if len(self._keys) > 2 * self.max_images:
            self._shrink()

    def merge(self, other: "CodeCollector") -> None:
        """Add the codes that another process collected from other images.

        Raises: ConfigError for collectors of different sizes.
        """
        if (self.n_latents, self.max_images) != (other.n_latents, other.max_images):
            raise ConfigError(
                "codes of different sizes cannot be merged.",
                f"n_latents x max_images: {other.n_latents} x {other.max_images} and {self.n_latents} x "
                f"{self.max_images}",
            )
        offset = len(self._keys)
        self._parts += [(row + offset, latent, value) for row, latent, value in other._parts]
        self._keys += other._keys
        self.n_seen += other.n_seen
        self._shrink()

    def keys(self) -> frozenset[str]:
        """Return the keys of the images that are held: those of the sample, and up to as many others."""
        return frozenset(self._keys)

    def result(self) -> SparseCodes:
        """Return the codes of the sample.

        Raises: ConfigError for a key that came twice.
        """
        self._shrink()
        if len(set(self._keys)) < len(self._keys):
            twice = next(key for key in self._keys if self._keys.count(key) > 1)
            raise ConfigError(f"codes: image '{twice}' came twice; each key may be in the stream once.")
        order = sorted(range(len(self._keys)), key=self._keys.__getitem__)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        row, latent, value = self._joined()
        row = place[row]
        by = np.lexsort((row, -value, latent))
        return SparseCodes(
            keys=tuple(self._keys[i] for i in order), row=row[by], latent=latent[by], value=value[by],
            n_latents=self.n_latents, n_seen=self.n_seen,
        )  # fmt: skip

    def _joined(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        empty = np.zeros(0, dtype=np.int64)
        parts = [(empty, empty, np.zeros(0)), *self._parts]
        row, latent, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        return row, latent, value

    def _shrink(self) -> None:
        """Leave the images with the smallest hashes."""
        if len(self._keys) <= self.max_images:
            return
        ranked = sorted((key_hash(key), key, i) for i, key in enumerate(self._keys))[: self.max_images]
        self._last = ranked[-1][:2]
        stays = sorted(i for *_, i in ranked)
        place = np.full(len(self._keys), -1, dtype=np.int64)
        place[stays] = np.arange(len(stays))
        row, latent, value = self._joined()
        inside = place[row] >= 0
        self._parts = [(place[row[inside]], latent[inside], value[inside])]
        self._keys = [self._keys[i] for i in stays]


def key_hash(key: str) -> bytes:
    """Return the hash of a key, by which samples of images are drawn."""
    return hashlib.blake2b(key.encode(), digest_size=8).digest()
