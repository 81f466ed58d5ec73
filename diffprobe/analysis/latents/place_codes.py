"""Where latents are active: the positive activations at each place of the maps of a bounded sample of images.

The sample has the images with the smallest hash of their key, as that of `sparse_codes.py`, so it depends neither on
batches nor on processes. Memory is that of `max_images` maps of k latents per place.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.analysis.latents.sparse_codes import key_hash
from diffprobe.core.errors import ConfigError, NonFinite

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MAX_MAPS = 1_000
"""Largest number of images of a sample."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PlaceCodes:
    """Positive activations, sorted by latent, then by activation (the largest first), then by image and place."""

    keys: tuple[str, ...]
    """Key of each image, ascending."""
    row: Ints
    """Image of each activation, a position in `keys`, (activations,)."""
    place: Ints
    """Place of each activation, row by row of the map from 0, (activations,)."""
    latent: Ints
    """Latent of each activation, (activations,)."""
    value: Floats
    """Each activation, above 0, (activations,)."""
    n_latents: int
    """Number of latents."""
    n_places: int
    """Places of a map."""

    @property
    def starts(self) -> Ints:
        """Position of the first activation of each latent, and their number as the last entry, (latents + 1,)."""
        return np.searchsorted(self.latent, np.arange(self.n_latents + 1)).astype(np.int64)

    def take(self, kept: NDArray[np.bool_]) -> "PlaceCodes":
        """Return those of some images: `kept` is whether each stays, (images,)."""
        place = np.where(kept, kept.cumsum() - 1, -1)
        stays = kept[self.row]
        return PlaceCodes(
            keys=tuple(key for key, stay in zip(self.keys, kept.tolist(), strict=True) if stay),
            row=place[self.row[stays]], place=self.place[stays], latent=self.latent[stays], value=self.value[stays],
            n_latents=self.n_latents, n_places=self.n_places,
        )  # fmt: skip


class PlaceCollector:
    """Collects the codes of the places of images.

    Args:
        n_latents: number of latents of the code.
        n_places: places of a map.
        max_images: largest number of images that are kept.
    """

    def __init__(self, n_latents: int, n_places: int, max_images: int = MAX_MAPS) -> None:
        if min(n_latents, n_places, max_images) < 1:
            raise ConfigError(
                f"places: n_latents={n_latents}, n_places={n_places}, max_images={max_images}; allowed: at least 1."
            )
        self.n_latents, self.n_places, self.max_images = n_latents, n_places, max_images
        self._found: dict[str, tuple[Ints, Ints, Floats]] = {}
        self._last: tuple[bytes, str] | None = None  # hash and key beyond which an image is not in the sample

    def update(
        self, values: Float[Tensor, "batch rows k"], indices: Int[Tensor, "batch rows k"], keys: Sequence[str]
    ) -> None:
        """Add a batch of images. The activation at a place is the largest over timesteps and draws.

        Args:
            values: activation of each listed latent; one that is not positive is not active. The rows of an image are
                its maps (of timesteps and draws), one after the other, each over its places.
            indices: number of each listed latent.
            keys: key of each image, none seen before.

        Raises: ConfigError for rows that are not whole maps, a latent outside the code or a key that came before;
            NonFinite.
        """
        if values.ndim != 3 or values.shape != indices.shape or values.shape[1] % self.n_places:
            raise ConfigError(
                f"places: values of shape {tuple(values.shape)} and indices of {tuple(indices.shape)} for maps of "
                f"{self.n_places} places.",
                "needed: [batch, rows, k], with rows a multiple of the places",
            )
        for i, key in enumerate(keys):
            if self._last is not None and (key_hash(key), key) > self._last:
                continue
            if key in self._found:
                raise ConfigError(f"places: image '{key}' came twice; each key may be in the stream once.")
            activation = values[i].detach().cpu().double().numpy()
            if not np.isfinite(activation).all():
                raise NonFinite(f"the code of image '{key}' contains NaN or infinity.")
            row, column = np.nonzero(activation > 0)
            latent = indices[i].cpu().numpy()[row, column].astype(np.int64)
            if latent.size and not (0 <= latent.min() and latent.max() < self.n_latents):
                raise ConfigError(f"latents {latent.min()}..{latent.max()}; allowed: 0..{self.n_latents - 1}.")
            pair = latent * self.n_places + row % self.n_places
            value = activation[row, column]
            order = np.lexsort((-value, pair))
            pair, first = np.unique(pair[order], return_index=True)
            self._found[key] = (pair // self.n_places, pair % self.n_places, value[order][first])
        if len(self._found) > 2 * self.max_images:
            self._shrink()

    def merge(self, other: "PlaceCollector") -> None:
        """Add what another process collected from other images. Raises: ConfigError for other sizes."""
        mine, theirs = ((one.n_latents, one.n_places, one.max_images) for one in (self, other))
        if mine != theirs:
            raise ConfigError(f"places of different sizes cannot be merged: {theirs} and {mine}.")
        self._found.update(other._found)
        self._shrink()

    def keys(self) -> frozenset[str]:
        """Return the keys of the images that are held: those of the sample, and up to as many others."""
        return frozenset(self._found)

    def result(self) -> PlaceCodes:
        """Return the activations of the sample."""
        self._shrink()
        keys = tuple(sorted(self._found))
        none = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0))
        parts = [none, *(self._found[key] for key in keys)]
        row = np.repeat(np.arange(len(keys)), [len(part[0]) for part in parts[1:]])
        latent, place, value = (np.concatenate(column) for column in zip(*parts, strict=True))
        by = np.lexsort((place, row, -value, latent))
        return PlaceCodes(
            keys=keys, row=row[by], place=place[by], latent=latent[by], value=value[by], n_latents=self.n_latents,
            n_places=self.n_places,
        )  # fmt: skip

    def _shrink(self) -> None:
        """Leave the images with the smallest hashes."""
        if len(self._found) <= self.max_images:
            return
        ranked = sorted((key_hash(key), key) for key in self._found)[: self.max_images]
        self._last = ranked[-1]
        self._found = {key: self._found[key] for _, key in ranked}
