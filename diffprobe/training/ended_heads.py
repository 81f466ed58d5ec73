"""Heads whose loss became NaN or infinite: they end, and disturb no other head that trains beside them.

A loss that is not finite is left out of the sum, with a gradient of exactly 0, in the step in which it is found on one
process; from the next step on all processes leave the head out.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class EndedHeads(nn.Module):
    """The steps at which heads ended; part of a checkpoint.

    Args:
        n_heads: number of heads.
    """

    step: Tensor
    """Step at which each head ended, -1 for none; the same on all processes."""
    failed: Tensor
    """1 for each head whose last loss on this process was not finite. Not a buffer: DDP copies those from rank 0."""

    def __init__(self, n_heads: int) -> None:
        super().__init__()
        self.register_buffer("step", torch.full((n_heads,), -1, dtype=torch.int64))
        self.failed = torch.zeros(n_heads)

    def take(self, failed: Float[Tensor, " heads"], step: int) -> list[int]:
        """End the heads that failed on any process.

        Args:
            failed: the sum of `failed` over all processes.
            step: number of the step.

        Returns: indices of the heads that ended now.
        """
        new = (failed > 0) & (self.step < 0)
        self.failed = torch.zeros_like(self.failed)
        if not new.any():
            return []
        self.step = torch.where(new, max(step, 1), self.step)
        return [int(i) for i in new.nonzero()[:, 0]]

    def masked(
        self, index: int, logits: Float[Tensor, "batch n_classes"]
    ) -> tuple[Float[Tensor, "batch n_classes"], Bool[Tensor, ""]]:
        """Return logits in float32, 0 for a head that cannot be used, and whether it can.

        The mask is before the loss: NaN times a gradient of 0 would be NaN.
        """
        usable = torch.isfinite(logits).all() & (self.step[index] < 0)
        return torch.where(usable, logits.float(), 0.0), usable

    def add_up(self, losses: Float[Tensor, " heads"]) -> tuple[Float[Tensor, ""], Bool[Tensor, " heads"]]:
        """Return the sum of the finite losses, and which are finite; note the others."""
        finite = torch.isfinite(losses.detach())
        self.failed = ((self.step < 0) & ~finite).float()
        return torch.where(finite, losses, 0.0).sum(), finite
