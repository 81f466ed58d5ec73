"""Latents that did not fire over the last so many samples. Owns the project's one definition of a dead latent.

A latent is dead when it was active in none of the last `window` samples. `sparsity.LatentUse` answers the simpler
question over all samples that it saw.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from diffprobe.core.errors import ConfigError, EmptyClass


class Dead(NamedTuple):
    """Which latents are dead, and over how many samples that was asked."""

    fraction: Float[Tensor, ""]
    """Share of the latents that are dead, float64."""
    mask: Bool[Tensor, " n_latents"]
    """Which ones."""
    window: int
    """Samples over which they were silent at least."""
    n: int
    """Samples seen in all."""


def last_active(
    values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"], n_latents: int
) -> Int[Tensor, " n_latents"]:
    """Return for each latent the last row in which its activation is above zero, -1 for none.

    >>> last_active(torch.tensor([[2.0, 1.0], [3.0, 0.0]]), torch.tensor([[0, 1], [0, 2]]), 3)
    tensor([ 1,  0, -1])
    """
    rows = torch.arange(len(values), device=values.device)[:, None].expand_as(indices)
    on = values > 0
    found = torch.full((n_latents,), -1, dtype=torch.int64, device=values.device)
    return found.scatter_reduce(0, indices[on], rows[on], "amax")


class DeadLatents(Metric):
    """Dead latents over a window of samples: the same at any batch size and number of processes.

    The samples of W processes count as one line: the first of each process, then the second of each, and so on. That is
    the line which one process sees if the others take every W-th sample of it.

    Args:
        n_latents: number of latents.
        window: samples.
    Raises: ConfigError for a window without samples.
    """

    full_state_update = True  # positions do not add up, so a batch's own value is computed apart
    higher_is_better = False
    is_differentiable = False
    n: Tensor
    last: Tensor

    def __init__(self, n_latents: int, window: int) -> None:
        super().__init__()
        if window < 1:
            raise ConfigError(f"dead latents: window={window} samples; at least one is needed.")
        self.n_latents, self.window = n_latents, window
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("last", torch.full((n_latents,), -1, dtype=torch.int64), dist_reduce_fx=None)

    def update(self, values: Float[Tensor, "batch k"], indices: Int[Tensor, "batch k"]) -> None:
        """Add codes, in the order of the samples: activations and the ids of their latents."""
        row = last_active(values.detach(), indices, self.n_latents)
        self.last = torch.where(row >= 0, row + self.n, self.last)
        self.n = self.n + len(values)

    def compute(self) -> Dead:
        """Return the dead latents. Raises: EmptyClass before `window` samples were seen: none can be known dead."""
        counts, last = self.n.reshape(-1), self.last.reshape(-1, self.n_latents)  # one row a process
        n = int(counts.sum())
        if n < self.window:
            raise EmptyClass(f"dead latents: {n} samples were seen, the window is {self.window}.")
        place = torch.stack([_place_in_line(rows, rank, counts) for rank, rows in enumerate(last)]).amax(0)
        mask = n - 1 - place >= self.window  # one that never fired stands at -1
        return Dead(mask.double().mean(), mask, self.window, n)


def _place_in_line(last: Int[Tensor, " n_latents"], rank: int, counts: Int[Tensor, " world"]) -> Tensor:
    """Turn the numbers of samples within one process into places in the joint line; -1 stays."""
    before = torch.minimum(last[:, None], counts).sum(1)  # whole rounds of all processes that were not at their end
    earlier = (counts[:rank] > last[:, None]).sum(1)
    return torch.where(last >= 0, before + earlier, -1)
