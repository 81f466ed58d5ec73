"""Accuracy, balanced accuracy and chance level of many classifiers at once, from counts per class."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric


def accuracy(logits: Float[Tensor, "batch n_classes"], label: Int[Tensor, " batch"]) -> float:
    """Return the share of samples whose largest logit is their label; samples labelled -1 are ignored.

    >>> accuracy(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1, -1]))
    0.5
    """
    metric = ClassCounts([logits.shape[1]])
    metric.update(0, logits, label)
    return float(metric.compute()[0]["accuracy"])


class ClassCounts(Metric):
    """Correct predictions and samples per class for a bank of classifiers, in two flat states (two all-reduces in all).

    Args:
        n_classes: number of classes of each classifier of the bank.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    hits: Tensor
    samples: Tensor

    def __init__(self, n_classes: Sequence[int]) -> None:
        super().__init__()
        self.n_classes = list(n_classes)
        total = sum(self.n_classes)
        self.add_state("hits", torch.zeros(total, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("samples", torch.zeros(total, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, head: int, logits: Float[Tensor, "batch n_classes"], label: Int[Tensor, " batch"]) -> None:
        """Add the logits of classifier number `head`; samples labelled -1 are ignored."""
        start, width = sum(self.n_classes[:head]), self.n_classes[head]
        known = label >= 0
        label, right = label[known], logits.argmax(1)[known] == label[known]
        self.samples[start : start + width] += torch.bincount(label, minlength=width)
        self.hits[start : start + width] += torch.bincount(label[right], minlength=width)

    def compute(self) -> list[dict[str, float]]:
        """Return accuracy, balanced accuracy (mean over the classes present) and n of each classifier."""
        scores = []
        for hits, samples in zip(
            self.hits.double().split(self.n_classes), self.samples.double().split(self.n_classes), strict=True
        ):
            n, seen = samples.sum(), samples > 0
            balanced = (hits[seen] / samples[seen]).mean() if n > 0 else torch.tensor(float("nan"))
            scores.append({"accuracy": float(hits.sum() / n), "balanced_accuracy": float(balanced), "n": float(n)})
        return scores

    def best_constant(self, head: int) -> float:
        """Return the chance level of classifier `head`: the accuracy of the best constant prediction on its samples.

        The constant is the most frequent class of these samples, which the probe does not know: an upper bound for
        constant predictions. The most frequent class of the training set may be absent from the held-out samples.
        """
        samples = self.samples.split(self.n_classes)[head].double()
        return float(samples.max() / samples.sum())
