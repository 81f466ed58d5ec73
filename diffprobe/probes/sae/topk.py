"""TopK: keeps the k largest latents of a sample."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import types
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.kernels.sparse_step import Top, scan
from diffprobe.probes.sae.types import Code, Collective, Selected, StepOutput

__all__ = ["KSAE", "Code", "Config", "StepOutput", "TopK", "make"]

WIDE = 4
"""Multi-TopK decodes a second time from this multiple of k."""


@dataclass(frozen=True, kw_only=True)
class Config(types.Config):
    """Keys of `probe=topk`, below `probe.params`."""

    multi_k_weight: float = 0.0
    """Weight of the reconstruction from 4k latents in the loss (1/8 is usual); 0 switches it off."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_k_weight < 0:
            raise ConfigError(f"multi_k_weight = {self.multi_k_weight} must not be negative.")


class TopK(KSAE):
    """The k largest pre-activations of each sample, negative ones as 0.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; multi-TopK is theirs too.
    """

    variant = "topk"
    config: Config

    @property
    def level_weights(self) -> tuple[float, ...]:
        """1 for k latents, and the weight of the wide level if there is one."""
        return (1.0, self.config.multi_k_weight) if self.config.multi_k_weight > 0 else (1.0,)

    def select(
        self, centred: Tensor, *, among: Tensor | None, k_among: int, collective: Collective
    ) -> tuple[Selected, Top | None]:
        """Keep the k largest, and the next 3k as part 1 where a wide level is asked for."""
        width = self.k if len(self.level_weights) == 1 else min(WIDE * self.k, self.n_latents)
        top, revived = scan(centred, self.W_enc, self.b_enc, k=width, among=among, k_among=k_among)
        part = (torch.arange(width, device=centred.device) >= self.k).long()
        return Selected(top, part.expand_as(top.indices)), revived

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Return the k largest latents of each sample."""
        top, _ = scan(self.scaled(x) - self.b_pre, self.W_enc, self.b_enc, k=self.k)
        return Code(top.values.relu() if self.relu else top.values, top.indices)


def make(config: Config, d_in: int, *, seed: int) -> TopK:
    """Make the autoencoder that `config` describes for features of width `d_in`."""
    return TopK(config, d_in, seed=seed)
