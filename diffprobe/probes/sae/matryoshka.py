"""Matryoshka: nested dictionaries, each of which reconstructs the features, so that the first latents stay general."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from diffprobe.core.errors import ConfigError
from diffprobe.probes.sae import batch_topk, types
from diffprobe.probes.sae.kernels.sparse_step import Top
from diffprobe.probes.sae.types import Collective, Selected


@dataclass(frozen=True, kw_only=True)
class Config(batch_topk.Config):
    """Keys of `probe=matryoshka`, below `probe.params`."""

    prefixes: tuple[float, ...] = (1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0)
    """Sizes of the nested dictionaries as shares of n_latents, strictly rising to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rising = all(one < two for one, two in pairwise((0.0, *self.prefixes)))
        if not self.prefixes or not rising or self.prefixes[-1] != 1:
            raise ConfigError(f"prefixes = {self.prefixes} must rise strictly, from above 0 to exactly 1.")


class Matryoshka(batch_topk.BatchTopK):
    """BatchTopK whose loss is the mean over nested dictionaries, computed from one selection.

    Source: Bussmann et al. 2025, "Learning multi-level features with Matryoshka sparse autoencoders", with the same
    default shares.
    """

    variant = "matryoshka"
    config: Config

    def __init__(self, config: types.Config, d_in: int, *, seed: int = 0) -> None:
        super().__init__(config, d_in, seed=seed)
        self.sizes = [max(1, round(share * self.n_latents)) for share in self.config.prefixes]
        if len(set(self.sizes)) < len(self.sizes):
            raise ConfigError(
                f"prefixes = {self.config.prefixes} of {self.n_latents} latents give equal sizes: {self.sizes}."
            )

    @property
    def main_level(self) -> int:
        """The last level, which uses all latents."""
        return len(self.sizes) - 1

    @property
    def level_weights(self) -> tuple[float, ...]:
        """Equal weights of all dictionaries, which add up to 1."""
        return (1 / len(self.sizes),) * len(self.sizes)

    def select(
        self, centred: Tensor, *, among: Tensor | None, k_among: int, collective: Collective
    ) -> tuple[Selected, Top | None]:
        """Select as BatchTopK does, and assign each latent to the smallest dictionary that contains it."""
        selected, revived = super().select(centred, among=among, k_among=k_among, collective=collective)
        ends = torch.tensor(self.sizes[:-1], device=centred.device)
        group = torch.bucketize(selected.top.indices.contiguous(), ends, right=True)
        return Selected(selected.top, torch.where(selected.part < 0, -1, group)), revived

    def _spans(self, n_parts: int) -> tuple[range, ...]:
        if n_parts != len(self.sizes):
            return super()._spans(n_parts)
        return tuple(range(start, stop) for start, stop in pairwise((0, *self.sizes)))


def make(config: Config, d_in: int, *, seed: int) -> Matryoshka:
    """Make an untrained autoencoder for features of width `d_in`."""
    return Matryoshka(config, d_in, seed=seed)
