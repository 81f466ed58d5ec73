"""Accuracy: the share of samples whose predicted class is the true one."""

from jaxtyping import Int
from torch import Tensor

FOR = "classifier"
NAME = "accuracy"
HIGHER_IS_BETTER = True
HELP = "share of samples whose predicted class is the true one"


def from_confusion(counts: Int[Tensor, "true predicted"]) -> float:
    """Return the accuracy, in 0..1; NaN without samples.

    >>> import torch
    >>> from_confusion(torch.tensor([[3, 1], [0, 4]]))
    0.875
    """
    return float(counts.diagonal().double().sum() / counts.sum())


def from_confusions(counts: Int[Tensor, "heads true predicted"]) -> list[float]:
    """Return `from_confusion` of each classifier."""
    right = counts.diagonal(dim1=1, dim2=2).double().sum(1)
    found: list[float] = (right / counts.sum((1, 2))).tolist()
    return found


def chance(counts: Int[Tensor, "true predicted"]) -> float:
    """Return the accuracy of the best constant answer to these very samples.

    The answer is their most frequent class, which no probe can know: the strictest constant. The most frequent class of
    the training set can be one that held-out samples do not have.
    """
    samples = counts.sum(1).double()
    return float(samples.max() / samples.sum())
