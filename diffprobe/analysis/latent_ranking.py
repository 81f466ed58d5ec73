"""The ranking of latents by their mean activation, over a stream of codes."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass


@dataclass(frozen=True, kw_only=True, eq=False)
class Ranking:
    """Latents by mean activation, the largest first."""

    latents: NDArray[np.int64]
    """The ranked latents, at most as many as were asked for."""
    n_eligible: int
    """Latents that are active often enough to be ranked."""
    n_latents: int
    """Number of all latents."""
    n_images: int
    """Images over which activity was counted."""


class LatentActivity:
    """Counts on how many images each latent is active, and the sum of its activations.

    Memory grows with the number of latents, not with the data.

    Args:
        n_latents: number of latents of the code.
    """

    def __init__(self, n_latents: int) -> None:
        if n_latents < 1:
            raise ConfigError(f"latent activity: n_latents={n_latents}; allowed: at least 1.")
        self.n_images = 0
        self.n_active = np.zeros(n_latents, dtype=np.int64)
        self.total = np.zeros(n_latents)

    def update(self, values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"]) -> None:
        """Add the codes of a batch of images; only positive activations count, of no latent twice in a row.

        Raises: ConfigError if the shapes differ.
        """
        if values.ndim != 2 or values.shape != indices.shape:
            raise ConfigError(
                "a batch of codes needs values and indices of one shape [batch, k].",
                f"values: {tuple(values.shape)}  indices: {tuple(indices.shape)}",
            )
        flat = values.detach().to("cpu").double().numpy().ravel()
        active = flat > 0
        latents, size = indices.detach().cpu().numpy().ravel()[active], len(self.total)
        self.n_images += len(values)
        self.n_active += np.bincount(latents, minlength=size)
        self.total += np.bincount(latents, weights=flat[active], minlength=size)

    def rank(self, *, more_than: int, n: int) -> Ranking:
        """Rank the latents that are active on more than `more_than` images, and return the first `n`.

        The mean is over the images on which a latent is active. It is compared in float32, the precision of the
        activations, so that the order of the stream does not matter; equal means are ordered by number.

        Raises: EmptyClass if no latent is active on so many images.
        """
        eligible = np.flatnonzero(self.n_active > more_than)
        if len(eligible) == 0:
            raise EmptyClass(
                f"none of {len(self.total):,} latents is active on more than {more_than} of {self.n_images:,} images.",
                f"most active: {int(self.n_active.max()):,} images",
                fix="a smaller n_top_images, more images, or an autoencoder with fewer latents or a larger k",
            )
        mean = (self.total[eligible] / self.n_active[eligible]).astype(np.float32)
        order = np.lexsort((eligible, -mean))
        return Ranking(
            latents=eligible[order][:n], n_eligible=len(eligible), n_latents=len(self.total), n_images=self.n_images
        )
