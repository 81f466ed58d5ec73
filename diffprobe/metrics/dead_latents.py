"""Dead latents in training: a latent is dead when it was active in none of the last `window` training samples.

AuxK revives these latents, and a run records their share as `windowed_dead_fraction`. For the `dead_fraction` of a
split (`dead_fraction.py`) the window is the whole split, and the weights are the saved ones.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from diffprobe.core.errors import ConfigError, EmptyClass

FOR = "sae_training"
NAME = "windowed_dead_fraction"
HIGHER_IS_BETTER = False
HELP = "share of latents that were silent over the last rows of training"
ORDER = 6


class Dead(NamedTuple):
    """Which latents are dead, and over how many samples."""

    fraction: Float[Tensor, ""]
    """Share of the latents that are dead, float64."""
    mask: Bool[Tensor, " n_latents"]
    """True for each dead latent."""
    window: int
    """Samples without activity after which a latent is dead."""
    n: int
    """Samples seen in total."""


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

    The samples of W processes are ordered as one sequence: the first of each process, then the second of each, and so
    on. It is the sequence of a single process whose every W-th sample goes to one of the W processes.

    A process keeps the positions of its own samples, and `compute` merges them. In training, where every step needs the
    dead latents, `update(..., gather=...)` merges them at once, and every process keeps the whole sequence; such a
    metric is made with sync_on_compute=False, and `persistent(True)` adds it to checkpoints.

    Args:
        n_latents: number of latents.
        window: number of samples.
        settings: arguments of `torchmetrics.Metric`.
    Raises: ConfigError for a window without samples.
    """

    full_state_update = True  # positions do not add up, so the value of a batch is computed separately
    higher_is_better = False
    is_differentiable = False
    n: Tensor
    last: Tensor

    def __init__(self, n_latents: int, window: int, **settings: Any) -> None:
        super().__init__(**settings)
        if window < 1:
            raise ConfigError(f"dead latents: window={window} samples; allowed: at least 1.")
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
            gather: concatenates the vectors of all processes, of equal length; None for this process only.
        """
        own = last_active(values.detach(), indices, self.n_latents)
        own = torch.cat([own, own.new_tensor([len(values)])])
        parts = (own if gather is None else gather(own)).view(-1, self.n_latents + 1)
        position = _joint_position(parts[:, :-1], parts[:, -1])
        self.last = torch.where(position >= 0, position + self.n, self.last)
        self.n = self.n + parts[:, -1].sum()

    @property
    def idle(self) -> Int[Tensor, " n_latents"]:
        """Samples of this process's sequence since each latent was active; all of them if it never was."""
        return self.n - 1 - self.last

    @property
    def is_full(self) -> bool:
        """Whether this process's sequence is as long as the window. Before that, no latent counts as dead."""
        return int(self.n) >= self.window

    @property
    def mask(self) -> Bool[Tensor, " n_latents"]:
        """Which latents are dead in this process's sequence; none before it is as long as the window."""
        return self.idle >= self.window

    def compute(self) -> Dead:
        """Return the dead latents. Raises: EmptyClass before `window` samples were seen."""
        counts, last = self.n.reshape(-1), self.last.reshape(-1, self.n_latents)  # one row per process
        n = int(counts.sum())
        if n < self.window:
            raise EmptyClass(f"dead latents: {n} samples were seen, the window is {self.window}.")
        mask = n - 1 - _joint_position(last, counts) >= self.window  # -1 for a latent that never fired
        return Dead(mask.double().mean(), mask, self.window, n)


def _joint_position(last: Int[Tensor, "world n_latents"], counts: Int[Tensor, " world"]) -> Int[Tensor, " n_latents"]:
    """Return the last position of each latent in the joint sequence, from its last position within each process."""
    if len(last) == 1:
        return last[0]
    return torch.stack([_position_of_process(rows, rank, counts) for rank, rows in enumerate(last)]).amax(0)


def _position_of_process(last: Int[Tensor, " n_latents"], rank: int, counts: Int[Tensor, " world"]) -> Tensor:
    """Turn positions within one process into positions in the joint sequence; -1 stays -1."""
    before = torch.minimum(last[:, None], counts).sum(1)  # whole rounds of all processes that still had samples
    earlier = (counts[:rank] > last[:, None]).sum(1)
    return torch.where(last >= 0, before + earlier, -1)
