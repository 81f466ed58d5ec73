"""How often each latent of a code is active: the counts behind L0, dead and dense latents."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric


def count_active(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], n_latents: int
) -> Int[Tensor, " n_latents"]:
    """Count for each latent the samples in which it was selected with an activation above zero.

    >>> count_active(torch.tensor([[2.0, 0.0]]), torch.tensor([[1, 2]]), 3)
    tensor([0, 1, 0])
    """
    return torch.bincount(indices[values > 0].flatten(), minlength=n_latents)


class LatentUsage(Metric):
    """Counts the samples in which each latent of a code is active.

    Args:
        n_latents: number of latents.
    """

    full_state_update = False
    is_differentiable = False
    n: Tensor
    active: Tensor

    def __init__(self, n_latents: int) -> None:
        super().__init__()
        self.n_latents = n_latents
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("active", torch.zeros(n_latents, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"]) -> None:
        """Add codes: activations and the ids of their latents. An activation of zero does not count."""
        self.n += values.shape[0]
        self.active += count_active(values.detach(), indices, self.n_latents)

    def compute(self) -> Tensor:
        """Return the density of each latent: the share of the samples in which it was active, float64."""
        return self.active / self.n.double().clamp(min=1)
