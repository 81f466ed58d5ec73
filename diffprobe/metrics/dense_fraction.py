"""Dense fraction: the share of the latents that fire on a tenth of the rows or more, with the frequency histogram."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, EmptyClass
from diffprobe.metrics.latent_usage import LatentUsage

FOR = "sae"
NAME = "dense_fraction"
HIGHER_IS_BETTER = None
HELP = "share of latents that fire on a tenth of the rows or more"
ORDER = 4

DENSE = 0.1
"""A latent that is active on this share of the samples or more is dense."""


class DensityHistogram(NamedTuple):
    """Latents by firing frequency (the share of the samples on which they are active); counts add up to n_latents."""

    edges: Float[Tensor, " bins+1"]
    """log10 of the frequency at the edges of the bins, rising, the last one 0; float64."""
    counts: Int[Tensor, " bins"]
    """Latents in each bin; a bin includes its lower edge, the last one also frequency 1."""
    n_never: int
    """Latents that never fired."""
    n_below: int
    """Latents that fired, but less often than the first edge."""

    @property
    def dense_fraction(self) -> float:
        """Share of all latents that are dense (frequency of at least `DENSE`, which is an edge of every histogram)."""
        n_latents = int(self.counts.sum()) + self.n_never + self.n_below
        return float(self.counts[self.edges[:-1] >= math.log10(DENSE)].sum() / n_latents)


def density_histogram(
    active: Int[Tensor, " n_latents"], n: int, *, decades: int = 6, bins_per_decade: int = 4
) -> DensityHistogram:
    """Count latents by the share of samples in which they were active, in bins of log10(frequency).

    Args:
        active: samples in which each latent was active.
        n: samples.
        decades: the bins reach from 10^-decades to 1.
        bins_per_decade: bins per factor of ten.
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


class DenseFraction(LatentUsage):
    """Share of the latents that are active on a tenth of the rows or more.

    Args:
        n_latents: number of latents.
        decades, bins_per_decade: see `density_histogram`.
    """

    def __init__(self, n_latents: int, *, decades: int = 6, bins_per_decade: int = 4) -> None:
        super().__init__(n_latents)
        self.decades, self.bins_per_decade = decades, bins_per_decade

    def histogram(self) -> DensityHistogram:
        """Return the latents by firing frequency, on this process. Raises: EmptyClass without rows."""
        return density_histogram(self.active, int(self.n), decades=self.decades, bins_per_decade=self.bins_per_decade)

    def compute(self) -> Tensor:
        """Return the share, a float64 scalar in 0..1. Raises: EmptyClass without rows."""
        return torch.tensor(self.histogram().dense_fraction, dtype=torch.float64)

    def detail(self) -> dict[str, Any]:
        """Return the definition of a dense latent, and the histogram in numbers that JSON can hold."""
        found = self.histogram()
        edges = found.edges.tolist()
        histogram = {
            "log10_first_edge": edges[0],
            "log10_bin_width": -edges[0] / (len(edges) - 1),
            "counts": found.counts.tolist(),
            "n_never": found.n_never,
            "n_below": found.n_below,
        }
        return {"dense": f"active on {DENSE:.0%} of the rows or more", "histogram": histogram}


def make(d_in: int, n_latents: int) -> DenseFraction:
    """Make the metric for an autoencoder of `n_latents` latents."""
    return DenseFraction(n_latents)
