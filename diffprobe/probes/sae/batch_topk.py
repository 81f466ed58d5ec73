"""BatchTopK: keeps the k * batch largest latents of a batch, so that samples share what they need.

After training a threshold takes the place of the batch; it is saved with the weights.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from diffprobe.core.errors import ConfigError, RunFailed
from diffprobe.probes.sae import types
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.kernels.sparse_step import Top, scan, scan_above
from diffprobe.probes.sae.types import Code, Collective, Selected


@dataclass(frozen=True, kw_only=True)
class Config(types.Config):
    """Keys of `probe=batch_topk`, below `probe.params`."""

    k: int = 32
    """Latents kept a sample, on average."""
    threshold_decay: float = 0.99
    """Share of the old threshold in the running average that a training step updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold_decay < 1:
            raise ConfigError(f"threshold_decay = {self.threshold_decay} must lie in 0..1, without 1.")


class BatchTopK(KSAE):
    """The k * batch largest pre-activations of a batch; outside training, those above `threshold`.

    The threshold starts at the smallest kept activation of the initial samples and follows that of the training
    batches as a running average. The budget is that of the global batch where several processes share one.

    A batch keeps exactly k * batch. Of equal pre-activations at the bar, which are common in bfloat16, those of earlier
    samples of the global batch and then of lower latents are kept, so that the number of processes changes nothing.

    Source: Bussmann et al. 2024, "BatchTopK sparse autoencoders".
    """

    variant = "batch_topk"
    config: Config
    threshold: Tensor

    def __init__(self, config: types.Config, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.register_buffer("threshold", torch.full((), -1.0))  # none yet

    @property
    def needs_rows(self) -> bool:
        """The first threshold comes from samples."""
        return True

    @torch.no_grad()
    def initialise(self, mean: Tensor, variance: Tensor, rows: Tensor | None = None) -> None:
        """Set scale, pre-bias, dictionary, and the first threshold."""
        super().initialise(mean, variance, rows)
        if rows is not None:
            selected, _ = self.select(
                self.scaled(rows) - self.b_pre, among=None, k_among=0, collective=types.SINGLE_PROCESS
            )
            kept = selected.top.values[(selected.part >= 0) & (selected.top.values > 0)]
            self.threshold.copy_(kept.min() if kept.numel() else torch.zeros(()))

    def select(
        self, centred: Tensor, *, among: Tensor | None, k_among: int, collective: Collective
    ) -> tuple[Selected, Top | None]:
        """Keep the k * batch largest of the global batch. Raises: ConfigError for an empty batch."""
        if centred.shape[0] == 0:
            raise ConfigError("BatchTopK selects among the samples of a batch, and this one is empty.")
        budget = self.k * centred.shape[0] * collective.size
        count = min(budget, centred.shape[0] * self.n_latents)
        top, revived = self._candidates(centred, count, among, k_among)
        largest = top.values.flatten().topk(count).values
        if collective.size > 1:
            largest = collective.gather(largest).topk(budget).values
        kept = self._share_out(top, largest[-1], budget, collective)
        width = max(1, int(kept.max()))
        part = (torch.arange(width, device=kept.device) < kept[:, None]).long() - 1
        return Selected(Top(*(t[:, :width] for t in top)), part), revived

    def _share_out(self, top: Top, bar: Tensor, budget: int, collective: Collective) -> Int[Tensor, " batch"]:
        """Return how many candidates each sample keeps, its first ones: those above the bar, and its share of the ties.

        Sorts, in place, a sample's ties by latent: which of equal ones `topk` puts first is not fixed.
        """
        tied = top.values == bar
        places = tied.nonzero()[:, 0] * self.n_latents + top.indices[tied]
        top.indices[tied] = places.sort().values % self.n_latents
        above = (~(top.values <= bar)).sum(1)  # in these words NaN is above, and makes the loss one
        counts = collective.gather(torch.cat([above.sum()[None], tied.sum(1)])).view(collective.size, -1)
        waiting = counts[:, 1:].T.flatten()  # in the order of the global batch, which is dealt out sample by sample
        before = waiting.cumsum(0) - waiting
        given = (budget - counts[:, 0].sum() - before).clamp(min=0).minimum(waiting)
        return above + given.view(-1, collective.size)[:, collective.rank]

    def _candidates(self, centred: Tensor, count: int, among: Tensor | None, k_among: int) -> tuple[Top, Top | None]:
        """Return, for each row, sorted candidates that hold all entries of the batch as large as the `count`th largest.

        Rows are cut at twice the average and only those that turn out too short are encoded again, wider.
        """
        n, m = centred.shape[0], self.n_latents
        width = min(m, 2 * -(-count // n))
        top, revived = scan(centred, self.W_enc, self.b_enc, k=width, among=among, k_among=k_among)
        while width < m:
            bar = top.values.flatten().topk(count).values[-1]
            short = (top.values[:, -1] >= bar).nonzero().squeeze(1)  # all candidates are in: there may be more
            if short.numel() == 0:
                break
            wider = min(m, 4 * width)
            again, _ = scan(centred[short], self.W_enc, self.b_enc, k=wider)
            top = Top(F.pad(top.values, (0, wider - width), value=-torch.inf), F.pad(top.indices, (0, wider - width)))
            top.values[short], top.indices[short] = again
            width = wider
        return top, revived

    def step(
        self, x: Tensor, *, dead: Tensor | None = None, collective: Collective = types.SINGLE_PROCESS
    ) -> types.StepOutput:
        """Compute the loss of a batch and, in training mode, move the threshold."""
        out = super().step(x, dead=dead, collective=collective)
        if self.training:
            self._follow(out.code, collective)
        return out

    @torch.no_grad()
    def _follow(self, code: Code, collective: Collective) -> None:
        kept = torch.where(code.values > 0, code.values, torch.inf)
        smallest = collective.gather(kept.min()[None]).min()
        if torch.isfinite(smallest):
            old, share = self.threshold, self.config.threshold_decay
            self.threshold.copy_(torch.where(old < 0, smallest, share * old + (1 - share) * smallest))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Return what lies above the threshold, whatever the batch. Raises: RunFailed before there is a threshold."""
        if float(self.threshold) < 0:
            raise RunFailed(
                "this autoencoder has no threshold yet.", fix="initialise(..., rows=samples), or train it for a step"
            )
        return Code(*scan_above(self.scaled(x) - self.b_pre, self.W_enc, self.b_enc, self.threshold))


def make(config: Config, d_in: int, *, seed: int) -> BatchTopK:
    """Make the autoencoder that `config` describes for features of width `d_in`."""
    return BatchTopK(config, d_in, seed=seed)
