"""Exact confusion counts of many classifiers at once, over batches and processes. Metrics are functions of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric


class ConfusionCounts(Metric):
    """Confusion matrices of a bank of classifiers in one flat state, so that a bank needs a single all-reduce.

    The state takes 8 * sum(n_classes^2) bytes: 71 kB per classifier of 94 classes, 8 MB per classifier of 1,000.

    Args:
        n_classes: number of classes of each classifier of the bank.
    """

    full_state_update = False
    is_differentiable = False
    counts: Tensor

    def __init__(self, n_classes: Sequence[int]) -> None:
        super().__init__()
        self.n_classes = list(n_classes)
        self._sizes = [count * count for count in self.n_classes]
        self._starts = [sum(self._sizes[:i]) for i in range(len(self._sizes))]
        self.add_state("counts", torch.zeros(sum(self._sizes), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, head: int, logits: Float[Tensor, "batch n_classes"], label: Int[Tensor, " batch"]) -> None:
        """Add the predictions of classifier number `head`; samples labelled -1 are left out."""
        known = label >= 0
        cells = label[known] * self.n_classes[head] + logits.argmax(1)[known] + self._starts[head]
        self.counts.scatter_add_(0, cells, torch.ones_like(cells))

    def compute(self) -> list[Int[Tensor, "true predicted"]]:
        """Return the matrix of each classifier: rows are the true classes, columns the predicted ones."""
        parts = self.counts.split(self._sizes)
        return [part.view(count, count) for part, count in zip(parts, self.n_classes, strict=True)]
