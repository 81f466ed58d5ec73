"""Exact confusion counts of many classifiers at once, over batches and processes. Metrics are functions of them."""

from collections.abc import Sequence
from types import ModuleType

import torch
from jaxtyping import Int
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

    def update(
        self,
        heads: Int[Tensor, " heads"],
        predicted: Int[Tensor, "heads batch"],
        label: Int[Tensor, "heads batch"],
    ) -> None:
        """Add the predictions of several classifiers with equal numbers of classes; samples labelled -1 are left out.

        Args:
            heads: their numbers in the bank.
            predicted, label: class ids.
        """
        count = self.n_classes[int(heads[0])]
        starts = torch.tensor([self._starts[i] for i in heads.tolist()], device=label.device)
        cells = label.clamp(min=0) * count + predicted + starts[:, None]
        self.counts.scatter_add_(0, cells.flatten(), (label >= 0).long().flatten())

    def compute(self) -> list[Int[Tensor, "true predicted"]]:
        """Return the matrix of each classifier: rows are the true classes, columns the predicted ones."""
        parts = self.counts.split(self._sizes)
        return [part.view(count, count) for part, count in zip(parts, self.n_classes, strict=True)]


_AT_ONCE = 2**22
"""Largest number of counts that are copied to be scored together."""


def score_heads(
    metrics: Sequence[ModuleType], counts: Sequence[Int[Tensor, "_ _"]], targets: Sequence[str]
) -> tuple[list[dict[str, float]], list[Int[Tensor, " _"]]]:
    """Compute metrics of many classifiers on one split, those with equal numbers of classes together.

    Args:
        metrics: files of metrics of classifiers.
        counts: confusion counts of each classifier.
        targets: what each predicts; the true classes of the samples are the same for all classifiers of a target.

    Returns: of each classifier its scores (`n` samples, `n_seen` classes that the samples have, each metric, and
        `chance/` of it), and the number of samples of each class. A classifier without samples has `n` and `n_seen`
        alone.
    """
    scores: list[dict[str, float]] = [{} for _ in counts]
    held: list[Tensor] = [matrix[:, 0] for matrix in counts]
    chances: dict[tuple[str, str], float] = {}
    for size in dict.fromkeys(len(matrix) for matrix in counts):
        alike = [i for i, matrix in enumerate(counts) if len(matrix) == size]
        step = max(1, _AT_ONCE // size**2)
        for numbers in (alike[at : at + step] for at in range(0, len(alike), step)):
            together = torch.stack([counts[i] for i in numbers])
            samples = together.sum(2)
            totals, seen = samples.sum(1).tolist(), (samples > 0).sum(1).tolist()
            for i, own, n, n_seen in zip(numbers, samples, totals, seen, strict=True):
                held[i] = own
                scores[i] |= {"n": float(n), "n_seen": float(n_seen)}
            full = [at for at, n in enumerate(totals) if n]
            for metric in metrics if full else ():
                chosen = together if len(full) == len(totals) else together[full]
                for at, value in zip(full, _values(metric, chosen), strict=True):
                    i = numbers[at]
                    key = (targets[i], metric.NAME)
                    if key not in chances:
                        chances[key] = metric.chance(counts[i])
                    scores[i] |= {metric.NAME: value, f"chance/{metric.NAME}": chances[key]}
    return scores, held


def _values(metric: ModuleType, counts: Int[Tensor, "heads true predicted"]) -> list[float]:
    if hasattr(metric, "from_confusions"):
        found: list[float] = metric.from_confusions(counts)
        return found
    return [metric.from_confusion(matrix) for matrix in counts]
