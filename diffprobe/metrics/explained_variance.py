"""Explained variance, centred: 1 - fvu. 0 for a reconstruction as good as the mean of the set; it can be negative."""

from jaxtyping import Float
from torch import Tensor

from diffprobe.metrics.fvu import Fvu, fvu

FOR = "sae"
NAME = "explained_variance"
HIGHER_IS_BETTER = True
HELP = "1 - fvu"
ORDER = 1


def explained_variance(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> float:
    """Return 1 - `fvu`, the share of the centred variance that a reconstruction explains.

    Libraries that measure the variance about zero report larger values: features with a large mean then appear to be
    explained by the mean alone.

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

    def controls(self) -> dict[str, float]:
        """Return the value of predicting the mean."""
        return {"mean_prediction": 0.0}


def of_fvu(value: float) -> float:
    """Return the score of a reconstruction from its fvu, for controls."""
    return 1 - value


def make(d_in: int, n_latents: int) -> ExplainedVariance:
    """Make the metric for features of width `d_in`."""
    return ExplainedVariance(d_in)
