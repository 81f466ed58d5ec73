"""Balanced accuracy: the mean over classes of the share of their samples that is predicted correctly."""

from jaxtyping import Int
from torch import Tensor

FOR = "classifier"
NAME = "balanced_accuracy"
HIGHER_IS_BETTER = True
HELP = "mean over the classes present of the share of their samples that is predicted correctly"


def from_confusion(counts: Int[Tensor, "true predicted"]) -> float:
    """Return the balanced accuracy over the classes that have samples, in 0..1; NaN without samples.

    >>> import torch
    >>> from_confusion(torch.tensor([[3, 1, 0], [0, 2, 2], [0, 0, 0]]))
    0.625
    """
    samples = counts.sum(1).double()
    seen = samples > 0
    return float((counts.diagonal().double()[seen] / samples[seen]).mean())


def from_confusions(counts: Int[Tensor, "heads true predicted"]) -> list[float]:
    """Return `from_confusion` of each classifier."""
    samples = counts.sum(2).double()
    seen = samples > 0
    if not seen.equal(seen[:1].expand_as(seen)):  # other classes in each: a sum over them would be rounded otherwise
        return [from_confusion(matrix) for matrix in counts]
    columns = seen[0]
    shares = counts.diagonal(dim1=1, dim2=2).double()[:, columns] / samples[:, columns]
    found: list[float] = shares.mean(1).tolist()
    return found


def chance(counts: Int[Tensor, "true predicted"]) -> float:
    """Return the balanced accuracy of any constant answer: 1 / number of classes present."""
    return 1 / int((counts.sum(1) > 0).sum())
