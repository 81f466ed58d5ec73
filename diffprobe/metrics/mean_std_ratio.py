"""gamma: the norm of the features' mean over that of their standard deviation. Large values predict dead latents."""

from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import NonFinite
from diffprobe.metrics.moments import Moments, RunningMoments

FOR = "sae"
NAME = "gamma"
HIGHER_IS_BETTER = None
HELP = "norm of the features' mean over their spread; large values predict dead latents"
ORDER = 5


def gamma(moments: Moments) -> Float[Tensor, ""]:
    """Return |mean| / |standard deviation|, both norms over the dimensions of the features; float64.

    The larger gamma is, the more latents are dead from the start in an autoencoder whose pre-bias starts at zero. With
    the pre-bias at the mean, the encoder sees features of gamma 0.

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
        raise NonFinite(f"gamma: the features of {moments.n} samples do not vary: their standard deviation is 0.")
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


def make(d_in: int, n_latents: int) -> MeanStdRatio:
    """Make the metric for features of width `d_in`."""
    return MeanStdRatio(d_in)
