"""gamma: how far the mean of the features lies from zero, in units of their spread. Predicts dead latents."""

from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import NonFinite
from diffprobe.metrics.moments import Moments, RunningMoments


def gamma(moments: Moments) -> Float[Tensor, ""]:
    """Return |mean| / |standard deviation|, both norms over the dimensions of the features; float64.

    An autoencoder whose pre-bias starts at zero has the more latents dead from the start, the larger it is; one that
    starts at the mean sees features of gamma 0.

    Source: 2605.31518.
    Raises: NonFinite if the features do not vary.

    >>> import torch
    >>> running = RunningMoments(1)
    >>> running.update(torch.tensor([[2.0], [4.0]]))
    >>> float(gamma(running.compute()))
    3.0
    """
    spread = moments.variance.sum().sqrt()
    if not spread > 0:
        raise NonFinite(f"gamma: the features of {moments.n} samples do not vary, so their mean has no unit.")
    return moments.mean.norm() / spread


class MeanStdRatio(RunningMoments):
    """`gamma` over batches and processes.

    Args:
        d_in: width of the features.
    """

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in)

    def compute(self) -> Tensor:  # type: ignore[override]
        """Return a float64 scalar. Raises: NonFinite without variance or with NaN in the features."""
        return gamma(super().compute())
