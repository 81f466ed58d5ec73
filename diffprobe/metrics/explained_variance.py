"""Explained variance, centred: 1 - fvu. Zero is as good as the mean of the set, and it can be negative."""

from jaxtyping import Float
from torch import Tensor

from diffprobe.metrics.fvu import Fvu, fvu


def explained_variance(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> float:
    """Return 1 - `fvu`, the share of the centred variance that a reconstruction explains.

    Values measured about zero instead of the mean, as some libraries give, are larger: the mean alone then "explains"
    most of features that have a large one.

    Raises: NonFinite if all samples are equal or a number is not finite.

    >>> import torch
    >>> explained_variance(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.5], [1.5]]))
    0.75
    """
    return 1 - fvu(x, x_hat)


class ExplainedVariance(Fvu):
    """`explained_variance` over batches and processes.

    Args:
        d_in: width of the features.
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return a float64 scalar. Raises: NonFinite without variance or with NaN in the features."""
        return 1 - super().compute()
