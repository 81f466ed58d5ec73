"""Noise prediction with the min-SNR weight of the loss.

Source: Hang et al., 2303.09556, equation 6 for epsilon prediction: weight = min(SNR, gamma) / SNR.
"""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.generative.objectives.base import ForwardProcess, PredictionType


@dataclass(frozen=True, kw_only=True)
class Config:
    """Keys of `objective=noise_prediction`, below `objective.params`."""

    min_snr_gamma: float = 5.0
    """Largest signal-to-noise ratio that counts in the loss weight min(SNR, gamma) / SNR; infinity weights all
    timesteps alike."""

    def __post_init__(self) -> None:
        if not self.min_snr_gamma > 0:
            raise ConfigError(f"min_snr_gamma={self.min_snr_gamma} is out of range: more than 0.")


class NoisePrediction:
    """Predicts the noise; errors are weighted by min(SNR, gamma) / SNR."""

    prediction_type: PredictionType = "epsilon"

    def __init__(self, config: Config, process: ForwardProcess) -> None:
        self._gamma, self._process = config.min_snr_gamma, process

    def target(
        self, clean: Float[Tensor, "batch c h w"], noise: Float[Tensor, "batch c h w"], timesteps: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch c h w"]:
        """Return the noise."""
        return noise

    def weighted(self, errors: Float[Tensor, " batch"], timesteps: Int[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Return errors * min(SNR, gamma) / SNR."""
        snr = self._process.snr(timesteps)
        return errors * snr.clamp(max=self._gamma) / snr


def make(config: Config, process: ForwardProcess) -> NoisePrediction:
    """Build the objective on a forward process."""
    return NoisePrediction(config, process)
