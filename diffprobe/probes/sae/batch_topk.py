"""BatchTopK: keeps the k * batch largest latents of a batch, so the number of latents varies from sample to sample.

After training, a threshold replaces the selection over the batch; it is saved with the weights.
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
    """Latents kept per sample, on average."""
    threshold_decay: float = 0.99
    """Weight of the old threshold in the running average that each training step updates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.threshold_decay < 1:
            raise ConfigError(f"threshold_decay = {self.threshold_decay} is out of range: at least 0, less than 1.")


class BatchTopK(KSAE):
    """The k * batch largest pre-activations of a batch; outside training, those above `threshold`.

    The threshold starts at the smallest kept activation of the initial samples and is a running average of that of the
    training batches. If several processes share a global batch, the selection is over the global batch.

    A batch keeps exactly k * batch latents. Among equal pre-activations at the cutoff, which are common in bfloat16,
    earlier samples of the global batch, then lower latents, are kept: the number of processes does not matter.

    Source: Bussmann et al. 2024, "BatchTopK sparse autoencoders".
    """

    variant, keeps_k = "batch_topk", False
    config: Config
    threshold: Tensor

    def __init__(self, config: types.Config, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.register_buffer("threshold", torch.full((), -1.0))  # negative: not set

    @property
    def needs_rows(self) -> bool:
        """True: the initial threshold is computed from samples."""
        return True

    @torch.no_grad()
    def initialise(self, mean: Tensor, variance: Tensor, rows: Tensor | None = None) -> None:
        """Set scale, pre-bias, dictionary, and the initial threshold."""
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
            raise ConfigError("BatchTopK selects over the samples of a batch; this batch has 0 samples.")
        budget = self.k * centred.shape[0] * collective.size
        count = min(budget, centred.shape[0] * self.n_latents)
        top, revived = self._candidates(centred, count, among, k_among)
        largest = top.values.flatten().topk(count).values
        if collective.size > 1:
            largest = collective.gather(largest).topk(budget).values
        kept = self._divide_budget(top, largest[-1], budget, collective)
        width = max(1, int(kept.max()))
        part = (torch.arange(width, device=kept.device) < kept[:, None]).long() - 1
        return Selected(Top(*(t[:, :width] for t in top)), part), revived

    def _divide_budget(self, top: Top, cutoff: Tensor, budget: int, collective: Collective) -> Int[Tensor, " batch"]:
        """Return how many of its first candidates each sample keeps: those above the cutoff, and its share of the ties.

        Sorts the ties of a sample by latent, in place, since the order of equal entries in `topk` is not defined.
        """
        tied = top.values == cutoff
        places = tied.nonzero()[:, 0] * self.n_latents + top.indices[tied]
        top.indices[tied] = places.sort().values % self.n_latents
        above = (~(top.values <= cutoff)).sum(1)  # written so that NaN counts as above, and the loss becomes NaN
        counts = collective.gather(torch.cat([above.sum()[None], tied.sum(1)])).view(collective.size, -1)
        waiting = counts[:, 1:].T.flatten()  # in the order of the global batch: sample i belongs to process i % size
        before = waiting.cumsum(0) - waiting
        given = (budget - counts[:, 0].sum() - before).clamp(min=0).minimum(waiting)
        return above + given.view(-1, collective.size)[:, collective.rank]

    def _candidates(self, centred: Tensor, count: int, among: Tensor | None, k_among: int) -> tuple[Top, Top | None]:
        """Return sorted candidates per row that include every entry of the batch at least as large as the `count`th.

        Rows keep twice the average number of candidates; rows that may need more are encoded again with a larger width.
        """
        n, m = centred.shape[0], self.n_latents
        width = min(m, 2 * -(-count // n))
        top, revived = scan(centred, self.W_enc, self.b_enc, k=width, among=among, k_among=k_among)
        while width < m:
            cutoff = top.values.flatten().topk(count).values[-1]
            short = (top.values[:, -1] >= cutoff).nonzero().squeeze(1)  # all candidates are selected: there may be more
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
        """Return the loss of a batch; in training mode, update the threshold."""
        out = super().step(x, dead=dead, collective=collective)
        if self.training:
            self._update_threshold(out.code, collective)
        return out

    @torch.no_grad()
    def _update_threshold(self, code: Code, collective: Collective) -> None:
        kept = torch.where(code.values > 0, code.values, torch.inf)
        smallest = collective.gather(kept.min()[None]).min()
        if torch.isfinite(smallest):
            old, share = self.threshold, self.config.threshold_decay
            self.threshold.copy_(torch.where(old < 0, smallest, share * old + (1 - share) * smallest))

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Return the latents above the threshold, independent of the batch. Raises: RunFailed without a threshold."""
        if float(self.threshold) < 0:
            raise RunFailed(
                "this BatchTopK autoencoder has no threshold: it was neither initialised from samples nor trained.",
                fix="call initialise(..., rows=samples), or train it for one step",
            )
        return Code(*scan_above(self.scaled(x) - self.b_pre, self.W_enc, self.b_enc, self.threshold))


def make(config: Config, d_in: int, *, seed: int) -> BatchTopK:
    """Make an untrained autoencoder for features of width `d_in`."""
    return BatchTopK(config, d_in, seed=seed)
