"""Labels by key, gathered over batches and processes: which samples a split holds, and their labels."""

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric


class LabelCollector(Metric):
    """Collects one row of labels per sample, identified by the hash of its key and sorted by it.

    Args:
        n_targets: labels per sample.
    """

    full_state_update = False
    is_differentiable = False
    hashes: list[Tensor]
    labels: list[Tensor]

    def __init__(self, n_targets: int) -> None:
        super().__init__()
        self.n_targets = n_targets
        self.add_state("hashes", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def update(self, hashes: Int[Tensor, " batch"], labels: Int[Tensor, "batch n_targets"]) -> None:
        """Add samples."""
        self.hashes.append(hashes)
        self.labels.append(labels)

    def compute(self) -> tuple[Int[Tensor, " samples"], Int[Tensor, "samples n_targets"]]:
        """Return the hashes in ascending order, and the labels of their samples."""
        hashes, labels = _joined(self.hashes), _joined(self.labels)
        order = hashes.argsort()
        return hashes[order], labels[order]

    def _sync_dist(self, *args: object, **kwargs: object) -> None:
        # Without a batch the state would be gathered as a float32 vector; dtype and axes must agree over processes.
        if not self.hashes:
            self.hashes = [torch.zeros(0, dtype=torch.int64, device=self.device)]
            self.labels = [torch.zeros(0, self.n_targets, dtype=torch.int64, device=self.device)]
        super()._sync_dist(*args, **kwargs)  # type: ignore[arg-type]


def _joined(state: list[Tensor] | Tensor) -> Tensor:
    return state if isinstance(state, Tensor) else torch.cat(state)
