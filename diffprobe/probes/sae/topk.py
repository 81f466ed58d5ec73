"""TopK: keeps the k largest latents of each sample."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import types
from diffprobe.probes.sae.base import KSAE
from diffprobe.probes.sae.kernels.sparse_step import Top
from diffprobe.probes.sae.types import Code, Collective, Selected, StepOutput

__all__ = ["KSAE", "Code", "Config", "StepOutput", "TopK", "make"]

WIDE = 4
"""The second reconstruction of multi-TopK uses this multiple of k."""


@dataclass(frozen=True, kw_only=True)
class Config(types.Config):
    """Keys of `probe=topk`, below `probe.params`."""

    multi_k_weight: float = 0.0
    """Weight of the reconstruction from 4 k latents in the loss (typically 1/8); 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.multi_k_weight < 0:
            raise ConfigError(f"multi_k_weight = {self.multi_k_weight} must not be negative.")


class TopK(KSAE):
    """Keeps the k largest pre-activations of each sample, with negative ones set to 0.

    Source: Gao et al. 2024, "Scaling and evaluating sparse autoencoders"; multi-TopK too.
    """

    variant = "topk"
    config: Config

    @property
    def level_weights(self) -> tuple[float, ...]:
        """Weight 1 of the reconstruction from k latents, and `multi_k_weight` of the second one if it is positive."""
        return (1.0, self.config.multi_k_weight) if self.config.multi_k_weight > 0 else (1.0,)

    def select(
        self, centred: Tensor, *, among: Tensor | None, k_among: int, collective: Collective
    ) -> tuple[Selected, Top | None]:
        """Keep the k largest, and the next 3 k as part 1 for multi-TopK."""
        width = self.k if len(self.level_weights) == 1 else min(WIDE * self.k, self.n_latents)
        top, revived = self.scan(centred, k=width, among=among, k_among=k_among)
        part = (torch.arange(width, device=centred.device) >= self.k).long()
        return Selected(top, part.expand_as(top.indices)), revived

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "batch d_in"]) -> Code:
        """Return the k largest latents of each sample."""
        top, _ = self.scan(self.scaled(x) - self.b_pre, k=self.k)
        return Code(top.values.relu() if self.relu else top.values, top.indices)


def make(config: Config, d_in: int, *, seed: int) -> TopK:
    """Make an untrained autoencoder for features of width `d_in`."""
    return TopK(config, d_in, seed=seed)
