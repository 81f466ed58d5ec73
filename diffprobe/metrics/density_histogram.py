"""How often latents fire, as a histogram of log10(frequency). Shows dense and nearly dead latents at one glance."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.metrics.sparsity import LatentUsage

DENSE = 0.1
"""A latent that is active on this share of the samples or more is dense."""


class DensityHistogram(NamedTuple):
    """Latents by firing frequency. All counts together are the number of latents."""

    edges: Float[Tensor, " bins+1"]
    """log10 of the frequency at the edges of the bins, rising, the last one 0; float64."""
    counts: Int[Tensor, " bins"]
    """Latents in each bin; a bin holds its lower edge, the last one also frequency 1."""
    n_never: int
    """Latents that never fired: they have no logarithm."""
    n_below: int
    """Latents that fired, but less often than the first edge."""

    @property
    def dense_fraction(self) -> float:
        """Share of all latents that are dense; every histogram has an edge there."""
        n_latents = int(self.counts.sum()) + self.n_never + self.n_below
        return float(self.counts[self.edges[:-1] >= math.log10(DENSE)].sum() / n_latents)


def density_histogram(
    active: Int[Tensor, " n_latents"], n: int, *, decades: int = 6, bins_per_decade: int = 4
) -> DensityHistogram:
    """Sort latents by the share of samples in which they were active.

    Args:
        active: samples in which each latent was active.
        n: samples.
        decades: the bins reach from 10^-decades to 1.
        bins_per_decade: bins between a frequency and ten times it.
    Raises: EmptyClass without samples, ConfigError for no bins.

    >>> found = density_histogram(torch.tensor([0, 1, 10, 100]), 100, decades=2, bins_per_decade=1)
    >>> found.counts.tolist(), found.n_never
    ([1, 2], 1)
    """
    if n < 1:
        raise EmptyClass("density histogram: no sample was counted.")
    if decades < 1 or bins_per_decade < 1:
        raise ConfigError(f"density histogram: decades={decades}, bins_per_decade={bins_per_decade}; both at least 1.")
    bins = decades * bins_per_decade
    steps = torch.arange(-bins, 1, dtype=torch.float64, device=active.device)
    fired = active[active > 0]
    place = torch.bucketize((fired.double() / n).log10(), steps / bins_per_decade, right=True) - 1
    counts = torch.bincount(place[place >= 0].clamp(max=bins - 1), minlength=bins)  # frequency 1 ends the last bin
    return DensityHistogram(
        edges=steps / bins_per_decade,
        counts=counts,
        n_never=int((active == 0).sum()),
        n_below=int((place < 0).sum()),
    )


class LatentDensity(LatentUsage):
    """`density_histogram` over batches and processes; an activation of zero does not count.

    Args:
        n_latents: number of latents.
        decades, bins_per_decade: see `density_histogram`.
    """

    def __init__(self, n_latents: int, *, decades: int = 6, bins_per_decade: int = 4) -> None:
        super().__init__(n_latents)
        self.decades, self.bins_per_decade = decades, bins_per_decade

    def compute(self) -> DensityHistogram:  # type: ignore[override]
        """Return the histogram. Raises: EmptyClass without samples."""
        return density_histogram(self.active, int(self.n), decades=self.decades, bins_per_decade=self.bins_per_decade)
