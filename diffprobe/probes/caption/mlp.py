"""MLP from caption embeddings to features: one hidden layer, trained on the squared error."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.probes.caption.base import CaptionConfig

READS = "captions"


@dataclass(frozen=True, kw_only=True)
class Config(CaptionConfig):
    """Keys of `probe=caption_mlp`, below `probe.params`. Epochs, learning rate and weight decay belong to `trainer`."""

    hidden: int = 512
    """Width of the hidden layer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden < 1:
            raise ConfigError(f"hidden={self.hidden} is out of range: at least 1.")


def make(config: Config, d_in: int, d_out: int, *, seed: int) -> nn.Sequential:
    """Return the untrained map: linear, ReLU, linear."""
    return nn.Sequential(nn.Linear(d_in, config.hidden), nn.ReLU(), nn.Linear(config.hidden, d_out))


def loss(
    module: nn.Module, x: Float[Tensor, "batch d_in"], y: Float[Tensor, "batch d_out"], weights: Float[Tensor, " d_out"]
) -> Float[Tensor, ""]:
    """Return the mean over samples of the squared error, as a share of the variance of the outputs.

    Args:
        x, y: standardised inputs and outputs.
        weights: share of each output in the variance of all; they add up to 1.
    """
    return ((module(x) - y).square() * weights).sum(1).mean()
