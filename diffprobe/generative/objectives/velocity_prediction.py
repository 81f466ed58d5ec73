"""Velocity prediction: the network predicts v = signal * noise - sigma * x_0, all timesteps weighted alike.

Source: Salimans and Ho, 2202.00512, appendix D. In x_0 the error is that of the weight SNR + 1 (their section 4), so no
timestep loses its weight at a signal-to-noise ratio near 0, where what a caption leaves open is decided.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.generative.objectives.base import ForwardProcess, PredictionType


@dataclass(frozen=True, kw_only=True)
class Config:
    """`objective=velocity_prediction` has no settings."""


class VelocityPrediction:
    """Predicts the velocity; errors are not weighted."""

    prediction_type: PredictionType = "v_prediction"

    def __init__(self, process: ForwardProcess) -> None:
        self._process = process

    def target(
        self, clean: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], timesteps: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch c h w"]:
        """Return signal * noise - sigma * clean."""
        process = self._process
        signal, sigma = (values[timesteps, None, None, None] for values in (process.signal, process.sigma))
        return signal * noise - sigma * clean

    def weighted(self, errors: Float[Tensor, " batch"], timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return the errors as they are."""
        return errors


def make(config: Config, process: ForwardProcess) -> VelocityPrediction:
    """Build the objective on a forward process."""
    return VelocityPrediction(process)
