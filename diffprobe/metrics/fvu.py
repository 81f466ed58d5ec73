"""Fraction of variance unexplained: the only definition in this project; `explained_variance` is 1 - fvu."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from diffprobe.core.errors import NonFinite

FOR = "sae"
NAME = "fvu"
HIGHER_IS_BETTER = False
HELP = "fraction of variance unexplained: residual over centred variance; 0 is perfect, 1 is the mean"
ORDER = 0


def fvu(x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> float:
    """Divide the residual by the centred variance of the whole set, both summed in float64.

    fvu = sum |x - x_hat|^2 / sum |x - mean(x)|^2: 0 is a perfect reconstruction, 1 is as good as the mean.

    Raises: NonFinite if all samples are equal or a number is not finite.

    >>> fvu(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [1.0]]))
    1.0
    """
    metric = Fvu(x.shape[1])
    metric.update(x, x_hat)
    return float(metric.compute())


class Fvu(Metric):
    """`fvu` over batches and processes: the result does not depend on how the samples were split.

    The variance comes from sums, in one pass. Its relative error is about 1e-16 |mean|^2 / variance: 1e-10 for features
    whose mean is a thousand times their spread. Beyond |mean|^2 / variance = 1e12 only rounding is left: NonFinite.

    Args:
        d_in: width of the features.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    n: Tensor
    residual: Tensor
    total: Tensor
    square: Tensor

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("residual", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(d_in, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("square", torch.zeros(d_in, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, x: Float[Tensor, "batch d_in"], x_hat: Float[Tensor, "batch d_in"]) -> None:
        """Add samples and their reconstructions, in the same unit."""
        x, x_hat = x.detach().double(), x_hat.detach().double()
        self.n += x.shape[0]
        self.residual += (x - x_hat).square().sum()
        self.total += x.sum(0)
        self.square += x.square().sum(0)

    def compute(self) -> Tensor:
        """Return the fvu, a float64 scalar. Raises: NonFinite without variance or with NaN in the features."""
        variance = (self.square - self.total.square() / self.n.clamp(min=1)).sum()
        value = self.residual / variance
        # Of equal samples only rounding is left in `variance`, and the ratio to it means nothing.
        if not torch.isfinite(value) or variance <= 1e-12 * self.square.sum():
            raise NonFinite(
                f"fvu: {int(self.n)} samples have the centred sum of squares {float(variance):.3g}.",
                "a fraction of variance needs at least two different, finite samples",
            )
        return value

    def controls(self) -> dict[str, float]:
        """Return the value of predicting the mean."""
        return {"mean_prediction": 1.0}


def of_fvu(value: float) -> float:
    """Return the score of a reconstruction from its fvu, for controls."""
    return value


def make(d_in: int, n_latents: int) -> Fvu:
    """Make the metric for features of width `d_in`."""
    return Fvu(d_in)
