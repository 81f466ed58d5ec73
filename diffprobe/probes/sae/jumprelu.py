"""JumpReLU: one threshold per latent, learned by straight-through gradients under an L0 penalty.

The number of active latents is not bounded, so training uses dense [batch, latents] pre-activations and activations;
codes are sparse.
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
"""Latents per chunk of the initialisation."""
_LEAST = 1e-3
"""Lowest threshold that is set, in units of a pre-activation. (Training learns the logarithm of the threshold.)"""
_JUST_BELOW = 0.999
"""New threshold of a dead latent, as a share of its largest pre-activation in a batch."""


@dataclass(frozen=True, kw_only=True)
class Config(types.Config):
    """Keys of `probe=jumprelu`, below `probe.params`."""

    k: int = 32
    """Mean number of active latents per sample: at the start, and the target of penalty=target."""
    penalty: Literal["target", "linear"] = "target"
    """target: l0_weight * (L0 / k - 1)^2, so that variants can be compared at equal L0. linear: l0_weight * L0, so that
    the loss decides how many latents are active."""
    l0_weight: float | None = None
    """Weight of the penalty, in units of the fvu: the penalty of an L0 of 0 or 2 k (target), or of one active latent
    (linear). None for 1 (target) and 1e-3 (linear)."""
    bandwidth: float = 0.8
    """Width of the kernel around a threshold, in units of a pre-activation; pre-activations outside it give no gradient
    to the threshold. The default had the lowest fvu on val of 0.02, 0.1, 0.3, 0.8, 1.5 and 3, over three cells of an
    earlier emoji-sd (one seed)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.l0_weight is not None and self.l0_weight < 0:
            raise ConfigError(f"l0_weight = {self.l0_weight} must not be negative.")
        if not self.bandwidth > 0:
            raise ConfigError(f"bandwidth = {self.bandwidth} must be positive.")
        if self.step != "sparse":
            raise ConfigError(
                f"step = {self.step} has no effect: each step of probe 'jumprelu' is computed densely.", fix="remove it"
            )


class JumpReLU(KSAE):
    """Keeps pre-activations above a learned threshold unchanged, and sets the others to 0.

    loss = fvu + l0_weight * (L0 / k - 1)^2 or l0_weight * L0 (+ AuxK), where L0 is the mean number of active latents in
    the global batch. The threshold is exp(log_threshold), and the comparison is in float32, also under autocast, where
    the encoder product is not. There is no ReLU before the comparison: it would not change activations, since
    thresholds are positive, but would put all negative pre-activations within the kernel of a low threshold.

    Source: Rajamanoharan et al. 2024, "Jumping ahead: improving reconstruction fidelity with JumpReLU sparse
    autoencoders", for both pseudo-derivatives, their rectangular kernel, and both penalties.
    """

    variant, keeps_k = "jumprelu", False
    config: Config

    def __init__(self, config: types.Config, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.log_threshold = nn.Parameter(torch.zeros(self.n_latents))
        self._highest: tuple[Tensor, Tensor] | None = None  # dead latents and their largest pre-activations

    @property
    def threshold(self) -> Float[Tensor, " n_latents"]:
        """Threshold of each latent, in units of a pre-activation."""
        return self.log_threshold.exp()

    @property
    def needs_rows(self) -> bool:
        """True: the initial thresholds are computed from samples."""
        return True

    @torch.no_grad()
    def initialise(self, mean: Tensor, variance: Tensor, rows: Tensor | None = None) -> None:
        """Set scale, pre-bias, dictionary, and thresholds with which all latents are active on equally many rows.

        On average, k latents are active per row. With one threshold for all, latents along which the features hardly
        vary would be dead from the start.
        """
        super().initialise(mean, variance, rows)
        if rows is not None:
            x = self.scaled(rows) - self.b_pre
            n_active = max(1, round(len(x) * self.k / self.n_latents))
            for part in torch.arange(self.n_latents, device=x.device).split(_CHUNK):
                h = F.linear(x, self.W_enc[part], self.b_enc[part])
                top = h.topk(min(n_active + 1, len(x)), dim=0).values.to(self.W_enc.dtype)
                between = (top[n_active - 1] + top[-1]) / 2  # between two values: active means above the threshold
                self.log_threshold[part] = between.clamp(min=_LEAST).log()

    def step(
        self, x: Tensor, *, dead: Tensor | None = None, collective: Collective = types.SINGLE_PROCESS
    ) -> StepOutput:
        """Return the loss of a batch, computed densely."""
        x = self.scaled(x)
        h = F.linear(x - self.b_pre, self.W_enc, self.b_enc).to(self.W_enc.dtype)
        threshold, width = self.threshold, self.config.bandwidth
        activations: Tensor = _Jump.apply(h, threshold, width)  # type: ignore[no-untyped-call]
        count: Tensor = _Count.apply(h, threshold, width)  # type: ignore[no-untyped-call]
        l0 = count.sum() / max(x.shape[0], 1)
        among, k_among = self._dead(dead)
        guess = None
        if among is not None:
            of_dead = h.index_select(1, among)
            highest = of_dead.detach().amax(0) if x.shape[0] else h.new_full((among.numel(),), -torch.inf)
            self._highest = among, collective.gather(highest).view(-1, among.numel()).amax(0)
            values, places = of_dead.topk(k_among, dim=1)
            guess = self.decode_scaled(Code(values.relu(), among[places]))
        parts = (activations @ self.W_dec)[:, None]
        active = max(1, int((activations > 0).sum(1).max())) if x.shape[0] else 1
        out = self.finish(x, self.centred(x), parts, guess, Code(*activations.detach().topk(active, dim=1)), collective)
        penalty = self._penalty(l0, collective)
        return out._replace(loss=out.loss + penalty, terms={"l0_penalty": penalty.detach()})

    @torch.no_grad()
    def end_step(self) -> None:
        """Scale decoder rows to unit norm, and lower the thresholds of dead latents below their largest pre-activation.

        AuxK alone does not revive them: their pre-activations grow to the size of the residual, which is below the
        thresholds. A latent whose pre-activations in the batch are all below `_LEAST` stays dead, since no threshold
        makes it active; the first batch with a larger one revives it. Until then AuxK gives it no gradient, as in the
        other variants.
        """
        super().end_step()
        if self._highest is not None:
            latents, highest = self._highest
            just_below = (highest * _JUST_BELOW).clamp(min=_LEAST).log()
            just_below = torch.where(highest > _LEAST, just_below, torch.inf)  # -inf: the batch had no samples
            self.log_threshold[latents] = torch.minimum(self.log_threshold[latents], just_below)
            self._highest = None

    def _penalty(self, l0: Tensor, collective: Collective) -> Tensor:
        weight = self.config.l0_weight
        if self.config.penalty == "linear":
            return (1e-3 if weight is None else weight) * l0
        off = collective.mean(l0.detach()) / self.k - 1
        # The value is off^2; the mean of its gradient over processes is the gradient of the global batch.
        return (1.0 if weight is None else weight) * (off.square() + 2 * off * (l0 - l0.detach()) / self.k)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Return the latents above their thresholds."""
        return Code(*scan_above(self.scaled(x) - self.b_pre, self.W_enc, self.b_enc, self.threshold))


def _within_kernel(h: Tensor, threshold: Tensor, width: float) -> Tensor:
    return (h - threshold).abs() < width / 2


class _Jump(torch.autograd.Function):
    """h where it exceeds the threshold, else 0; d/d threshold = -(threshold / width) within the kernel."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.width = width
        return h * (h > threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        h, threshold = ctx.saved_tensors
        slope = -(threshold / ctx.width) * (g * _within_kernel(h, threshold, ctx.width)).sum(0)
        return g * (h > threshold), slope, None


class _Count(torch.autograd.Function):
    """1 where h exceeds the threshold, else 0; d/d threshold = -(1 / width) within the kernel, d/d h = 0."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, threshold: Tensor, width: float) -> Tensor:
        ctx.save_for_backward(h, threshold)
        ctx.width = width
        return (h > threshold).to(h.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        h, threshold = ctx.saved_tensors
        return None, -(1 / ctx.width) * (g * _within_kernel(h, threshold, ctx.width)).sum(0), None


def make(config: Config, d_in: int, *, seed: int) -> JumpReLU:
    """Make an untrained autoencoder for features of width `d_in`."""
    return JumpReLU(config, d_in, seed=seed)
