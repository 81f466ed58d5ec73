"""Training of one TopK autoencoder whose latents are shared by the processes of the run: `trainer.strategy=latents`.

Every process sees each batch, and evaluates with the others. Rows of the dictionary, their optimiser state and their
counts in training are those of its range; pre-bias, scores, and counts of evaluation are equal on all processes.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from torchmetrics import Metric

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.processes import started
from diffprobe.core.rng import derive_seed
from diffprobe.metrics.dead_latents import Dead
from diffprobe.metrics.decoder_coherence import WholeDecoder
from diffprobe.probes.sae.latent_shards import LatentShards
from diffprobe.probes.sae.sharded import SHARED_BY, ShardedTopK
from diffprobe.probes.sae.types import Code, Config
from diffprobe.training.latents_strategy import clip_norm, require_same_place, shards_of
from diffprobe.training.sae import SparseAutoencoderModule
from diffprobe.training.sae_scores import Scores, decoder_scores
from diffprobe.training.sharded_coherence import sharded_coherence
from diffprobe.training.training_statistics import FirstPass


class ShardedAutoencoderModule(SparseAutoencoderModule):
    """Trains one autoencoder over all processes of a run.

    Args:
        config, cell, d_in, settings, seed: see `SparseAutoencoderModule`.
        shards: the processes; None for those that `settings` asks for and a launcher started.

    Raises: ConfigError for another variant than TopK, for fewer latents than processes, and what
        `SparseAutoencoderModule` raises.
    """

    shards_latents = True

    def __init__(
        self,
        config: Config,
        *,
        cell: str | Sequence[str],
        d_in: int,
        settings: TrainerConfig,
        seed: int = 0,
        shards: LatentShards | None = None,
    ) -> None:
        shards = shards or shards_of(settings, started(os.environ))
        sae = ShardedTopK(config, d_in, seed=derive_seed("sae", seed), shards=shards)
        super().__init__(config, cell=cell, d_in=d_in, settings=settings, seed=seed, sae=sae)
        for part in self.modules():
            if isinstance(part, Metric):
                part.distributed_available_fn = _samples_are_shared
        self._dead_at_end: Dead | None = None

    @property
    def shards(self) -> LatentShards:
        """The processes."""
        return cast(ShardedTopK, self.sae).shards

    def configure_model(self) -> None:
        """Check the place of this process. Raises: ConfigError."""
        require_same_place(self.shards, self.trainer)

    def request_rows(self, statistics: FirstPass) -> FirstPass:
        """Request rows as `SparseAutoencoderModule` does, of a pass in which every process sees all samples."""
        statistics.moments.distributed_available_fn = _samples_are_shared
        return super().request_rows(statistics)

    def dead_fraction(self) -> Tensor:
        """Return the share of all latents that are dead in the window so far. Collective."""
        return self.shards.total(self.dead_latents.mask.sum()) / self.sae.n_latents

    def count_active(self, code: Code) -> None:
        """Update the dead latents of this process with the code of a training batch."""
        self.dead_latents.update(*cast(ShardedTopK, self.sae).own_code(code))

    def finish(self, split: str) -> None:
        """Compute and log the scores of a split. Collective. Raises: NonFinite."""
        super().finish(split)
        if split == "train" and self.dead_latents.is_full:
            own = self.dead_latents.compute()
            total = self.shards.total(own.mask.sum()).double()
            self._dead_at_end = own._replace(fraction=total / self.sae.n_latents)

    def measure_window(self) -> Dead:
        """Return the dead latents at the end of training: the share is that of all latents, the mask of the range."""
        assert self._dead_at_end is not None
        return self._dead_at_end

    def measure_decoder(self) -> Scores:
        """Return the scores of the whole decoder. Collective."""
        found = sharded_coherence(self.sae.W_dec, self.sae.n_latents, self.shards)
        return decoder_scores(self.sae.W_dec, WholeDecoder(found, (self.sae.n_latents, self.sae.d_in)))

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient by its norm over all processes."""
        if gradient_clip_val is not None:
            named = [(name, weight.grad) for name, weight in self.sae.named_parameters() if weight.grad is not None]
            gradients = [(gradient, name in SHARED_BY) for name, gradient in named]
            clip_norm(gradients, float(gradient_clip_val), self.shards)

    def save_together(self, folder: Path) -> None:
        """Write the whole autoencoder, gathered on the main process in parts. Collective."""
        self.sae.to(self.trainer.strategy.root_device)  # after a run the weights are on the CPU, NCCL needs the GPU
        self.sae.save_pretrained(folder / "sae", cell=self.cell)

    def save(self, folder: Path) -> list[Path]:
        """Return the folder of the autoencoder, which `save_together` has written."""
        return [folder / "sae"]


def _samples_are_shared() -> bool:
    """Tell metrics not to add the counts of all processes: every process counts all samples."""
    return False
