"""The samples on which each latent is most active, found in one pass over a stream of codes with bounded heaps.

`analysis/latent_selection.py` selects the latents that a report shows.
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, NonFinite

Codes = tuple[Float[Tensor, "batch k"], Int[Tensor, "batch k"], Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class TopSample:
    """A sample on which a latent is active."""

    key: str
    """The sample's key."""
    activation: float
    """Activation of the latent on this sample, in the unit of the code."""

    def __lt__(self, other: "TopSample") -> bool:
        """Return whether this sample ranks lower: a smaller activation, or an equal one and a later key."""
        return (self.activation, other.key) < (other.activation, self.key)


class TopSamples:
    """Keeps the `n_top` most active samples of each latent.

    Memory grows with n_latents x n_top, not with the data. Equal activations are ordered by key (the earlier key
    first), so the result depends neither on the order of the stream nor on its split into batches and processes. Only
    positive activations count: a latent that a TopK code selects with value 0 is not active.

    Args:
        n_latents: number of latents of the code.
        n_top: samples kept per latent.

    >>> top = TopSamples(n_latents=2, n_top=1)
    >>> top.update(torch.tensor([[1.0], [2.0]]), torch.tensor([[0], [0]]), ["a", "b"])
    >>> [[sample.key for sample in samples] for samples in top.result()]
    [['b'], []]
    """

    def __init__(self, n_latents: int, n_top: int) -> None:
        if n_latents < 1 or n_top < 1:
            raise ConfigError(f"top samples: n_latents={n_latents}, n_top={n_top}; allowed: at least 1.")
        self.n_latents, self.n_top = n_latents, n_top
        self._heaps: list[list[TopSample]] = [[] for _ in range(n_latents)]
        self._floors = np.zeros(n_latents)  # least activation that is kept: 0 until the heap is full, then its minimum

    def update(self, values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], keys: Sequence[str]) -> None:
        """Add a batch of codes.

        Raises: ConfigError if the shapes differ or an index is outside 0..n_latents-1, NonFinite on NaN.
        """
        self._check(values, indices, keys)
        flat = values.detach().to("cpu", torch.float64).numpy().ravel()
        latents = indices.detach().cpu().numpy().ravel()
        rows = np.repeat(np.arange(len(keys)), values.shape[1])
        # once the heaps are full, this vectorised comparison discards nearly all entries
        candidates = np.flatnonzero((flat > 0) & (flat >= self._floors[latents]))
        for position in candidates.tolist():
            self._push(int(latents[position]), TopSample(key=keys[rows[position]], activation=float(flat[position])))

    def merge(self, other: "TopSamples") -> None:
        """Add the samples that another process found on a disjoint part of the data."""
        if (self.n_latents, self.n_top) != (other.n_latents, other.n_top):
            raise ConfigError(
                "top samples of different sizes cannot be merged.",
                f"n_latents x n_top: {other.n_latents} x {other.n_top} and {self.n_latents} x {self.n_top}",
            )
        for latent, heap in enumerate(other._heaps):
            for sample in heap:
                self._push(latent, sample)

    def result(self) -> list[list[TopSample]]:
        """Return the samples of each latent, the most active first; fewer than n_top if it was active less often."""
        return [sorted(heap, reverse=True) for heap in self._heaps]

    def _push(self, latent: int, sample: TopSample) -> None:
        heap = self._heaps[latent]
        if len(heap) < self.n_top:
            heapq.heappush(heap, sample)
        else:
            heapq.heappushpop(heap, sample)
        if len(heap) == self.n_top:
            self._floors[latent] = heap[0].activation

    def _check(self, values: Tensor, indices: Tensor, keys: Sequence[str]) -> None:
        if values.ndim != 2 or values.shape != indices.shape or len(keys) != values.shape[0]:
            raise ConfigError(
                "a batch of codes needs values and indices of one shape [batch, k] and one key per row.",
                f"values: {tuple(values.shape)}  indices: {tuple(indices.shape)}  keys: {len(keys)}",
            )
        if indices.numel() and not (0 <= int(indices.min()) and int(indices.max()) < self.n_latents):
            raise ConfigError(
                f"latents {int(indices.min())}..{int(indices.max())} in a code; allowed: 0..{self.n_latents - 1}."
            )
        bad = ~torch.isfinite(values).all(dim=1)
        if bad.any():
            raise NonFinite(f"the code of sample '{keys[int(bad.nonzero()[0])]}' contains NaN or infinity.")


def top_samples(stream: Iterable[Codes], n_latents: int, n_top: int) -> list[list[TopSample]]:
    """Return the `n_top` most active samples of each latent, in one pass.

    Args:
        stream: batches of (values [batch, k], indices [batch, k], keys). Each key appears once in the whole stream.
        n_latents: number of latents of the code.
        n_top: samples kept per latent.
    Returns: n_latents lists, the most active sample first; ties by key.
    """
    top = TopSamples(n_latents, n_top)
    for values, indices, keys in stream:
        top.update(values, indices, keys)
    return top.result()
