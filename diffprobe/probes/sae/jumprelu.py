"""JumpReLU: each latent has a threshold of its own, learned through straight-through gradients under an L0 penalty.

How many latents are active is not bounded, so pre-activations and activations are dense [batch, latents] here, in
training; codes are sparse again.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import contract
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.contract import Code, Joint, StepOutput
from diffprobe.probes.sae.sparse_step import scan_above

_CHUNK = 1024
"""Latents looked at together at the start."""
_LEAST = 1e-3
"""The lowest threshold at the start, in units of a pre-activation; its logarithm is what is learned."""


@dataclass(frozen=True, kw_only=True)
class Config(contract.Config):
    """Keys of `probe=jumprelu`, below `probe.params`."""

    k: int = 32
    """Latents active a sample at the start, on average; afterwards the loss decides, l0_weight among it."""
    l0_weight: float = 1e-3
    """What an active latent costs in units of the fvu."""
    bandwidth: float = 0.8
    """Width of the kernel around a threshold, in units of a pre-activation; only there a threshold learns. Of 0.02,
    0.1, 0.3, 0.8, 1.5 and 3 this left the least fvu on val, three cells of emoji-sd together (one seed)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l0_weight < 0:
            raise ConfigError(f"l0_weight = {self.l0_weight} must not be negative.")
        if not self.bandwidth > 0:
            raise ConfigError(f"bandwidth = {self.bandwidth} must be more than 0.")


class JumpReLU(KSAE):
    """Pre-activations above a learned threshold, as they are; the rest 0.

    loss = fvu + l0_weight * L0 (+ AuxK). The threshold is exp(log_threshold), float32 like all weights.

    Source: Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse
    autoencoders", for both pseudo-derivatives and their rectangular kernel.
    """

    variant = "jumprelu"
    config: Config

    def __init__(self, config: contract.Config, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.log_threshold = nn.Parameter(torch.zeros(self.n_latents))

    @property
    def threshold(self) -> Float[Tensor, " n_latents"]:
        """The thresholds, in the unit of the pre-activations."""
        return self.log_threshold.exp()

    @property
    def needs_rows(self) -> bool:
        """The first threshold comes from samples."""
        return True

    @torch.no_grad()
    def initialise(self, mean: Tensor, variance: Tensor, rows: Tensor | None = None) -> None:
        """Set scale, pre-bias, dictionary, and thresholds above which all latents are active for equally many rows.

        That many that k are active a row on average. One threshold for all would leave those asleep whose direction the
        features hardly vary in.
        """
        super().initialise(mean, variance, rows)
        if rows is not None:
            x = self.scaled(rows) - self.b_pre
            n_active = max(1, round(len(x) * self.k / self.n_latents))
            for part in torch.arange(self.n_latents, device=x.device).split(_CHUNK):
                h = F.linear(x, self.W_enc[part], self.b_enc[part])
                top = h.topk(min(n_active + 1, len(x)), dim=0).values
                between = (top[n_active - 1] + top[-1]) / 2  # activations lie above the threshold, not on it
                self.log_threshold[part] = between.clamp(min=_LEAST).log()

    def step(self, x: Tensor, *, dead: Tensor | None = None, joint: Joint = contract.ALONE) -> StepOutput:
        """Compute the loss of a batch, densely."""
        x = self.scaled(x)
        h = F.linear(x - self.b_pre, self.W_enc, self.b_enc).relu()
        threshold, width = self.threshold, self.config.bandwidth
        activations: Tensor = _Jump.apply(h.float(), threshold, width)  # type: ignore[no-untyped-call]
        count: Tensor = _Count.apply(h.float(), threshold, width)  # type: ignore[no-untyped-call]
        l0 = count.sum() / max(x.shape[0], 1)
        among, k_among = self._sleeping(dead)
        guess = None
        if among is not None:
            values, places = h.index_select(1, among).topk(k_among, dim=1)
            guess = self.decode_scaled(Code(values, among[places]))
        hats = (activations @ self.W_dec + self.b_pre)[:, None]
        active = max(1, int((activations > 0).sum(1).max())) if x.shape[0] else 1
        out = self.finish(x, hats, guess, Code(*activations.detach().topk(active, dim=1)), joint)
        penalty = self.config.l0_weight * l0
        return out._replace(loss=out.loss + penalty, terms={"l0_penalty": penalty.detach()})

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Return what lies above the thresholds."""
        return Code(*scan_above(self.scaled(x) - self.b_pre, self.W_enc, self.b_enc, self.threshold))


def _near(h: Tensor, threshold: Tensor, width: float) -> Tensor:
    return (h - threshold).abs() < width / 2


class _Jump(torch.autograd.Function):
    """h where it exceeds the threshold; d/d threshold = -(threshold / width) near it."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.width = width
        return h * (h > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        h, threshold = ctx.saved_tensors
        slope = -(threshold / ctx.width) * (g * _near(h, threshold, ctx.width)).sum(0)
        return g * (h > threshold), slope, None


class _Count(torch.autograd.Function):
    """1 where h exceeds the threshold; d/d threshold = -(1 / width) near it, none for h."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.width = width
        return (h > threshold).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        h, threshold = ctx.saved_tensors
        return None, -(1 / ctx.width) * (g * _near(h, threshold, ctx.width)).sum(0), None


def make(config: Config, d_in: int, *, seed: int) -> JumpReLU:
    """Make the autoencoder that `config` describes for features of width `d_in`."""
    return JumpReLU(config, d_in, seed=seed)
