"""JumpReLU: each latent has a threshold of its own, learned through straight-through gradients under an L0 penalty.

How many latents are active is not bounded, so pre-activations and activations are dense [batch, latents] here, in
training; codes are sparse again.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import types
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.kernels.sparse_step import scan_above
from diffprobe.probes.sae.types import Code, Collective, StepOutput

_CHUNK = 1024
"""Latents looked at together at the start."""
_LEAST = 1e-3
"""The lowest threshold that is set, in units of a pre-activation; its logarithm is what is learned."""
_JUST_BELOW = 0.999
"""Where a sleeping latent's threshold is put, as a share of the largest pre-activation of a batch."""


@dataclass(frozen=True, kw_only=True)
class Config(types.Config):
    """Keys of `probe=jumprelu`, below `probe.params`."""

    k: int = 32
    """Latents active a sample at the start, on average, and where penalty=target keeps them."""
    penalty: Literal["target", "linear"] = "target"
    """target: a mean that leaves k costs the square of how far it is off, as a share of k, so that variants can be
    compared at one L0. linear: each active latent costs the same, and the loss decides how many there are."""
    l0_weight: float | None = None
    """In units of the fvu: for target, what a mean of 0 or of 2 k costs; for linear, what an active latent costs. None
    for 1 and 1e-3."""
    bandwidth: float = 0.8
    """Width of the kernel around a threshold, in units of a pre-activation; only there a threshold learns. Of 0.02,
    0.1, 0.3, 0.8, 1.5 and 3 this left the least fvu on val, three cells of an earlier emoji-sd together (one seed)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l0_weight is not None and self.l0_weight < 0:
            raise ConfigError(f"l0_weight = {self.l0_weight} must not be negative.")
        if not self.bandwidth > 0:
            raise ConfigError(f"bandwidth = {self.bandwidth} must be more than 0.")


class JumpReLU(KSAE):
    """Pre-activations above a learned threshold, as they are; the rest 0.

    loss = fvu + l0_weight * (L0 / k - 1)^2 or l0_weight * L0 (+ AuxK), where L0 is the global batch's mean number of
    active latents. The threshold is exp(log_threshold), float32 like all weights; what it is compared with is float32
    too, under autocast also, where the product before is not. Pre-activations meet it without a ReLU, which changes no
    activation as thresholds are positive: with one, all negative pre-activations would count as near a low threshold.

    Source: Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse
    autoencoders", for both pseudo-derivatives, their rectangular kernel, and both penalties.
    """

    variant = "jumprelu"
    config: Config

    def __init__(self, config: types.Config, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.log_threshold = nn.Parameter(torch.zeros(self.n_latents))
        self._highest: tuple[Tensor, Tensor] | None = None  # sleeping latents and their largest pre-activations

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
                top = h.topk(min(n_active + 1, len(x)), dim=0).values.to(self.W_enc.dtype)
                between = (top[n_active - 1] + top[-1]) / 2  # activations lie above the threshold, not on it
                self.log_threshold[part] = between.clamp(min=_LEAST).log()

    def step(
        self, x: Tensor, *, dead: Tensor | None = None, collective: Collective = types.SINGLE_PROCESS
    ) -> StepOutput:
        """Compute the loss of a batch, densely."""
        x = self.scaled(x)
        h = F.linear(x - self.b_pre, self.W_enc, self.b_enc).to(self.W_enc.dtype)
        threshold, width = self.threshold, self.config.bandwidth
        activations: Tensor = _Jump.apply(h, threshold, width)  # type: ignore[no-untyped-call]
        count: Tensor = _Count.apply(h, threshold, width)  # type: ignore[no-untyped-call]
        l0 = count.sum() / max(x.shape[0], 1)
        among, k_among = self._dead(dead)
        guess = None
        if among is not None:
            asleep = h.index_select(1, among)
            highest = asleep.detach().amax(0) if x.shape[0] else h.new_full((among.numel(),), -torch.inf)
            self._highest = among, collective.gather(highest).view(-1, among.numel()).amax(0)
            values, places = asleep.topk(k_among, dim=1)
            guess = self.decode_scaled(Code(values.relu(), among[places]))
        parts = (activations @ self.W_dec)[:, None]
        active = max(1, int((activations > 0).sum(1).max())) if x.shape[0] else 1
        out = self.finish(x, self.centred(x), parts, guess, Code(*activations.detach().topk(active, dim=1)), collective)
        penalty = self._price(l0, collective)
        return out._replace(loss=out.loss + penalty, terms={"l0_penalty": penalty.detach()})

    @torch.no_grad()
    def end_step(self) -> None:
        """Give decoder rows unit norm, and sleeping latents a threshold that some sample of the batch exceeds.

        AuxK alone does not wake them: what it teaches is as large as the residual, and thresholds lie above that. One
        whose pre-activations are all negative, or below the lowest threshold, sleeps on: no threshold makes it active.
        The first batch with a larger one wakes it; until then AuxK gives it no gradient, as in the other variants.
        """
        super().end_step()
        if self._highest is not None:
            latents, highest = self._highest
            just_below = (highest * _JUST_BELOW).clamp(min=_LEAST).log()
            just_below = torch.where(highest > _LEAST, just_below, torch.inf)  # -inf where there was no sample
            self.log_threshold[latents] = torch.minimum(self.log_threshold[latents], just_below)
            self._highest = None

    def _price(self, l0: Tensor, collective: Collective) -> Tensor:
        weight = self.config.l0_weight
        if self.config.penalty == "linear":
            return (1e-3 if weight is None else weight) * l0
        off = collective.mean(l0.detach()) / self.k - 1
        # Its value is off^2; its gradient, whose mean over processes is taken, that of the global batch.
        return (1.0 if weight is None else weight) * (off.square() + 2 * off * (l0 - l0.detach()) / self.k)

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
