"""Transcoder: sparse latents of one tap that reconstruct another tap at the same sample and place."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from diffprobe.core.errors import ConfigError
from diffprobe.core.rng import derive_seed
from diffprobe.probes.sae import topk, types
from diffprobe.probes.sae.initialization import random_rows
from diffprobe.probes.sae.types import SINGLE_PROCESS, Code, Collective, StepOutput

READS: types.Reads = "pairs"
"""What the autoencoder reads besides the rows (`types.Reads`)."""


@dataclass(frozen=True, kw_only=True)
class Config(topk.Config):
    """Keys of `probe=transcoder`, below `probe.params`."""

    target_tap: str
    """Tap whose features are reconstructed, at the timestep, condition and pooling of `probe.cell`."""
    skip: bool = False
    """Whether a learned affine map of the input is added to the reconstruction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target_tap or "@" in self.target_tap:
            raise ConfigError(
                f"target_tap = '{self.target_tap}' is not a tap: the timestep is that of probe.cell.",
                fix="the path of a module among features.taps, for example up_blocks.1",
            )
        if self.datapoint_blend > 0:
            raise ConfigError(
                "datapoint_blend has no meaning for a transcoder: its decoder has the width of the target."
            )
        if self.row_buffer:
            raise ConfigError(f"row_buffer = {self.row_buffer}: probe 'transcoder' keeps no rows.", fix="row_buffer=0")


class Transcoder(topk.TopK):
    """TopK latents of an input x from which a target y is reconstructed.

        y_hat = (W_dec^T topk(W_enc (s x - b_pre) + b_enc) + b_out + W_skip (s x - b_pre)) / s_out

    s, b_pre and s_out, b_out come from the training set as in `KSAE`, of the input and of the target. Decoder rows have
    unit norm and start random, apart from the encoder's; W_skip, only with `skip`, starts at 0. The loss is the squared
    error over the variance of the target.

    Args:
        config, d_in, seed: see `KSAE`.
        d_out: width of the target.

    Source: Dunefsky et al. 2024, "Transcoders find interpretable LLM feature circuits"; the affine skip of Paulo et al.
        2025, "Transcoders beat sparse autoencoders for interpretability".
    """

    variant, reads = "transcoder", READS
    config: Config
    scale_out: Tensor

    def __init__(self, config: Config, d_in: int, *, d_out: int, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.d_out = d_out
        self.W_dec = nn.Parameter(random_rows(self.n_latents, d_out, seed=derive_seed("decoder", seed)))
        self.b_out = nn.Parameter(torch.zeros(d_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(d_out, d_in))
        self.register_buffer("scale_out", torch.ones(()))

    @property
    def make_arguments(self) -> dict[str, Any]:
        """The width of the target."""
        return {"d_out": self.d_out}

    @property
    def centre(self) -> Float[Tensor, " d_out"]:
        """Bias of the reconstruction, in the unit of the target, float64."""
        return (self.b_out / self.scale_out).detach().double()

    @torch.no_grad()
    def set_target(self, mean: Float[Tensor, " d_out"], variance: Float[Tensor, " d_out"]) -> None:
        """Set scale and bias of the target from its mean and variance in the training set (divisor n).

        Raises: ConfigError for a constant target.
        """
        total = float(variance.sum())
        if not total > 0:
            raise ConfigError(f"the features of the target '{self.config.target_tap}' are constant.")
        self.scale_out.fill_((self.d_out / total) ** 0.5)
        self.b_out.copy_(mean * self.scale_out)

    @property
    def _decoder_bias(self) -> Tensor:
        return self.b_out

    def step(
        self,
        x: Float[Tensor, "batch d_in"],
        *,
        target: Float[Tensor, "batch d_out"] | None = None,
        dead: Tensor | None = None,
        collective: Collective = SINGLE_PROCESS,
    ) -> StepOutput:
        """Return the loss of a batch of inputs and targets. Raises: ConfigError without targets of the right shape."""
        if target is None or target.shape != (len(x), self.d_out):
            found = "none" if target is None else str(tuple(target.shape))
            raise ConfigError(f"a transcoder needs a target of shape {(len(x), self.d_out)}; got {found}.")
        x = self.scaled(x)
        wanted = target.to(self.W_dec.dtype) * self.scale_out
        residual = wanted - self.b_out.detach()
        if self.config.skip:
            residual = residual - F.linear(x - self.b_pre, self.W_skip)
        return self._approximate(wanted, residual, self.centred(x), dead, collective)

    def decode(self, code: Code) -> Float[Tensor, "batch d_out"]:
        """Return the part of the reconstruction that the latents and the bias give, in the unit of the target."""
        return (self.decode_scaled(code) + self.b_out) / self.scale_out

    def forward(self, x: Float[Tensor, "batch d_in"]) -> tuple[Float[Tensor, "batch d_out"], Code]:
        """Return the reconstruction of the target, and the code; with `skip`, the affine part is included."""
        code = self.encode(x)
        found = self.decode(code)
        if self.config.skip:
            found = found + F.linear(self.scaled(x) - self.b_pre, self.W_skip) / self.scale_out
        return found, code


def make(config: Config, d_in: int, *, seed: int, d_out: int) -> Transcoder:
    """Make an untrained transcoder from features of width `d_in` to features of width `d_out`."""
    return Transcoder(config, d_in, d_out=d_out, seed=seed)
