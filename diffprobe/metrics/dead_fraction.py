"""Dead fraction: the share of the latents that are active on none of the rows of a split, with the saved weights.

In training, latents count as dead over a window of samples: `dead_latents.py`.
"""

from typing import Any

from torch import Tensor

from diffprobe.metrics.latent_usage import LatentUsage

FOR = "sae"
NAME = "dead_fraction"
HIGHER_IS_BETTER = False
HELP = "share of latents that never fire on this split"
ORDER = 3


class DeadFraction(LatentUsage):
    """Share of the latents that are active on no row.

    Args:
        n_latents: number of latents.
    """

    def compute(self) -> Tensor:
        """Return the share, a float64 scalar in 0..1."""
        return (self.active == 0).double().mean()

    def detail(self) -> dict[str, Any]:
        """Return the window (all rows of the split) and the definition of a dead latent."""
        return {"window": int(self.n), "dead": "active on no row of this split, with the saved weights"}


def make(d_in: int, n_latents: int) -> DeadFraction:
    """Make the metric for an autoencoder of `n_latents` latents."""
    return DeadFraction(n_latents)
