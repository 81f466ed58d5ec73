"""revelio_released: the autoencoder of the code released with Revelio, for comparison with its published numbers.

Differences from TopK and from the paper's text: no ReLU after the selection, so activations may be negative; no AuxK;
squared error over the variance of the batch; Kaiming initialisation of the encoder with n_latents as fan-in, not d_in;
pre-bias at the mean of a few samples; no input scale; decoder rows normalised before each step, not after the last one.
The released code logs L0 and dead fraction of dense pre-activations; here they count selected latents with a positive
activation, so a sample may have fewer than k.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import topk
from diffprobe.probes.sae.types import Collective
from diffprobe.probes.sae.types import Config as BaseConfig


@dataclass(frozen=True, kw_only=True)
class Config(topk.Config):
    """Keys of `probe=revelio-released`, below `probe.params`."""

    expansion: int = 64
    """Latents as a multiple of d_in; used if n_latents is None."""
    aux_weight: float = 0.0
    """The released code has no AuxK: 0."""
    learning_rate: float = 4e-4
    """Step size if trainer.learning_rate is None."""
    warmup_steps: int | None = 500
    """Steps over which the step size rises."""
    decay: float = 0.0
    """0: the step size stays constant after the warm-up."""
    adam_eps: float = 1e-8
    """Adam's epsilon."""
    adam_beta2: float = 0.999
    """Adam's decay of squared gradients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        fixed = {"aux_weight": 0.0, "k_aux": None, "multi_k_weight": 0.0, "datapoint_blend": 0.0, "pre_bias": "mean"}
        for name, value in fixed.items():
            if (given := getattr(self, name)) != value:
                raise ConfigError(
                    f"{name} = {given} of probe 'revelio_released' cannot be changed.", f"allowed: {value}"
                )


class RevelioReleased(topk.TopK):
    """TopK as in the code released with Revelio.

    Source: Kim, Thomas, Ghadiyaram 2025, "Revelio", training code at commit cd23c87.
    """

    variant, relu = "revelio_released", False
    config: Config

    def __init__(self, config: BaseConfig, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        generator = torch.Generator().manual_seed(seed)

        def uniform(fan_in: int) -> Tensor:
            bound = math.sqrt(6 / fan_in)
            return (2 * torch.rand(self.n_latents, d_in, generator=generator) - 1) * bound

        with torch.no_grad():
            self.W_enc.copy_(uniform(self.n_latents))  # fan-in of the transposed matrix, as in the released code
            self.W_dec.copy_(F.normalize(uniform(d_in), dim=1))

    @property
    def needs_rows(self) -> bool:
        """True: the pre-bias is the mean of `init_samples` samples."""
        return True

    @torch.no_grad()
    def initialise(self, mean: Tensor, variance: Tensor, rows: Tensor | None = None) -> None:
        """Set the pre-bias to the mean of the samples; features are not scaled."""
        super().initialise(mean, variance, rows)
        assert rows is not None
        self.scale.fill_(1.0)
        self.b_pre.copy_(rows.double().mean(0))

    def variance_of(self, x: Tensor, collective: Collective) -> Tensor:
        """Return the variance of the global batch about its mean."""
        n = max(x.shape[0], 1)
        mean = collective.mean(x.sum(0) / n)
        return collective.mean((x - mean).square().sum() / n).detach().clamp(min=1e-12)

    def begin_step(self) -> None:
        """Scale every decoder row to unit norm, before the step."""
        self.normalise_decoder()

    def end_step(self) -> None:
        """Do nothing: the decoder is not normalised after the step."""


def make(config: Config, d_in: int, *, seed: int) -> RevelioReleased:
    """Make an untrained autoencoder for features of width `d_in`."""
    return RevelioReleased(config, d_in, seed=seed)
