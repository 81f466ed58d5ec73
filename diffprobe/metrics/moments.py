"""Float64 sums behind means, variances and least-squares estimates, exact however the samples are split."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor
from torchmetrics import Metric

from diffprobe.core.errors import NonFinite


class Moments(NamedTuple):
    """Float64 sums over samples x and their n_columns binary labels y in {0, 1}."""

    n: int
    """Number of samples."""
    x: Float[Tensor, " d_in"]
    """Sum of x."""
    square: Float[Tensor, " d_in"]
    """Sum of x^2, elementwise."""
    y: Float[Tensor, " n_columns"]
    """Sum of y: the number of positive samples of each column."""
    xy: Float[Tensor, "d_in n_columns"]
    """Sum of x y^T: the sum of x over the positive samples of each column."""
    gram: Float[Tensor, "d_in d_in"] | None
    """Sum of x x^T; None unless it was requested."""

    @property
    def mean(self) -> Float[Tensor, "*d_in"]:
        """Mean of x, float64; without an axis for one dimension, which torchmetrics drops in `compute`."""
        return self.x / max(self.n, 1)

    @property
    def variance(self) -> Float[Tensor, "*d_in"]:
        """Variance of x with divisor n, float64; exactly 0 where it is within rounding of 0."""
        variance = self.square / max(self.n, 1) - self.mean.square()
        return torch.where(variance > 1e-12 * self.mean.square(), variance.clamp(min=0), torch.zeros_like(variance))


def add_moments(a: Moments, b: Moments) -> Moments:
    """Return the sums over the samples of both; with a sum of x x^T if both have one."""
    return _combined(a, b, 1)


def subtract_moments(a: Moments, b: Moments) -> Moments:
    """Return the sums over the samples of a that are not in b, which is a part of it."""
    return _combined(a, b, -1)


def _combined(a: Moments, b: Moments, sign: int) -> Moments:
    gram = None if a.gram is None or b.gram is None else a.gram + sign * b.gram
    x, square, y, xy = (of_a + sign * of_b for of_a, of_b in zip(a[1:5], b[1:5], strict=True))
    return Moments(a.n + sign * b.n, x, square, y, xy, gram)


class RunningMoments(Metric):
    """Collects `Moments` over batches and processes.

    Args:
        d_in: width of x.
        n_columns: number of label columns; 0 for none.
        gram: also sum x x^T (d_in^2 numbers).
    """

    full_state_update = False
    is_differentiable = False
    n: Tensor
    x: Tensor
    square: Tensor
    y: Tensor
    xy: Tensor
    xx: Tensor

    def __init__(self, d_in: int, n_columns: int = 0, *, gram: bool = False) -> None:
        super().__init__()
        self.has_gram = gram
        shapes = {"x": (d_in,), "square": (d_in,), "y": (n_columns,), "xy": (d_in, n_columns)}
        shapes["xx"] = (d_in, d_in) if gram else (0, 0)
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, x: Float[Tensor, "batch d_in"], y: Num[Tensor, "batch n_columns"] | None = None) -> None:
        """Add samples, with their 0/1 label columns, or columns of real numbers, if there are any."""
        x = x.detach().double()
        self.n += x.shape[0]
        self.x += x.sum(0)
        self.square += x.square().sum(0)
        if y is not None:
            labels = y.double()
            self.y += labels.sum(0)
            self.xy += x.T @ labels
        if self.has_gram:
            self.xx += x.T @ x

    def compute(self) -> Moments:
        """Return the sums. Raises: NonFinite if a feature was NaN or infinite."""
        if not torch.isfinite(self.square).all():
            bad = int((~torch.isfinite(self.square)).sum())
            raise NonFinite(f"{bad} of {self.square.numel()} feature dimensions contain NaN or infinity.")
        gram = self.xx.clone() if self.has_gram else None
        return Moments(int(self.n), self.x.clone(), self.square.clone(), self.y.clone(), self.xy.clone(), gram)
