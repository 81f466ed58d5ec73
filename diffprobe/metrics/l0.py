"""L0: the mean number of active latents per row."""

from torch import Tensor

from diffprobe.metrics.latent_usage import LatentUsage

FOR = "sae"
NAME = "l0"
HIGHER_IS_BETTER = None
HELP = "active latents per row"
ORDER = 2


class L0(LatentUsage):
    """Active latents per row: selected, with an activation above zero.

    Args:
        n_latents: number of latents.
    """

    def compute(self) -> Tensor:
        """Return the mean over the rows, a float64 scalar; 0 without rows."""
        return self.active.sum() / self.n.double().clamp(min=1)


def make(d_in: int, n_latents: int) -> L0:
    """Make the metric for an autoencoder of `n_latents` latents."""
    return L0(n_latents)
