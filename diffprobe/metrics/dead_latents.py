"""Latents that did not fire over the last so many samples. Owns the project's one definition of a dead latent.

A latent is dead when it was active in none of the last `window` samples: what AuxK revives in training, and what a run
records as `windowed_dead_fraction`. The `dead_fraction` of a split (`sparsity.LatentUsage`) is the same question with all
samples of the split as the window, asked of the finished weights.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

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

    A process keeps its own part of the line, and `compute` brings the parts together. In training, where each step asks
    which latents are dead, `update(..., gather=...)` brings them together at once and every process keeps the whole
    line; such a metric is made with sync_on_compute=False, and `persistent(True)` puts it in a checkpoint.

    Args:
        n_latents: number of latents.
        window: samples.
        settings: those of every torchmetrics `Metric`.
    Raises: ConfigError for a window without samples.
    """

    full_state_update = True  # positions do not add up, so a batch's own value is computed apart
    higher_is_better = False
    is_differentiable = False
    n: Tensor
    last: Tensor

    def __init__(self, n_latents: int, window: int, **settings: Any) -> None:
        super().__init__(**settings)
        if window < 1:
            raise ConfigError(f"dead latents: window={window} samples; at least one is needed.")
        self.n_latents, self.window = n_latents, window
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx=None)
        self.add_state("last", torch.full((n_latents,), -1, dtype=torch.int64), dist_reduce_fx=None)

    def update(
        self,
        values: Float[Tensor, "batch k"],
        indices: Int[Tensor, "batch k"],
        *,
        gather: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Add codes, in the order of the samples: activations and the ids of their latents.

        Args:
            gather: returns the vectors of all processes behind each other, of equal length; None for this process only.
        """
        own = last_active(values.detach(), indices, self.n_latents)
        own = torch.cat([own, own.new_tensor([len(values)])])
        parts = (own if gather is None else gather(own)).view(-1, self.n_latents + 1)
        place = _joint_line(parts[:, :-1], parts[:, -1])
        self.last = torch.where(place >= 0, place + self.n, self.last)
        self.n = self.n + parts[:, -1].sum()

    @property
    def idle(self) -> Int[Tensor, " n_latents"]:
        """Samples of this process's line since each latent was active; all of them for one that never was."""
        return self.n - 1 - self.last

    @property
    def is_full(self) -> bool:
        """Whether this process's line is as long as the window; before that no latent can be known to be dead."""
        return int(self.n) >= self.window

    @property
    def mask(self) -> Bool[Tensor, " n_latents"]:
        """Which latents are known to be dead by this process's line; none before it is as long as the window."""
        return self.idle >= self.window

    def compute(self) -> Dead:
        """Return the dead latents. Raises: EmptyClass before `window` samples were seen: none can be known dead."""
        counts, last = self.n.reshape(-1), self.last.reshape(-1, self.n_latents)  # one row a process
        n = int(counts.sum())
        if n < self.window:
            raise EmptyClass(f"dead latents: {n} samples were seen, the window is {self.window}.")
        mask = n - 1 - _joint_line(last, counts) >= self.window  # one that never fired stands at -1
        return Dead(mask.double().mean(), mask, self.window, n)


def _joint_line(last: Int[Tensor, "world n_latents"], counts: Int[Tensor, " world"]) -> Int[Tensor, " n_latents"]:
    """Return the last place of each latent in the joint line, from its last place within each process."""
    if len(last) == 1:
        return last[0]
    return torch.stack([_place_in_line(rows, rank, counts) for rank, rows in enumerate(last)]).amax(0)


def _place_in_line(last: Int[Tensor, " n_latents"], rank: int, counts: Int[Tensor, " world"]) -> Tensor:
    """Turn the numbers of samples within one process into places in the joint line; -1 stays."""
    before = torch.minimum(last[:, None], counts).sum(1)  # whole rounds of all processes that were not at their end
    earlier = (counts[:rank] > last[:, None]).sum(1)
    return torch.where(last >= 0, before + earlier, -1)
