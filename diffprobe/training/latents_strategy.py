"""`trainer.strategy=latents`: the processes of a run share the latents of one autoencoder, and each gets all samples.

The strategy starts processes as ddp does; it neither wraps the module nor averages gradients, since the module itself
exchanges what it has to.
"""

from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from diffprobe.config.schema import LATENTS, TrainerConfig
from diffprobe.core.errors import ConfigError
from diffprobe.core.processes import Processes
from diffprobe.probes.sae.latent_shards import LatentShards
from diffprobe.training.checkpoint_shards import ShardedCheckpoint


class LatentsStrategy(DDPStrategy):
    """One process per range of latents, over all devices and nodes. The module has `shards_latents = True`."""

    strategy_name = LATENTS

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._files = ShardedCheckpoint()

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Share of the samples: every process gets all of them."""
        return {"num_replicas": 1, "rank": 0}

    def setup(self, trainer: lightning.Trainer) -> None:
        """Move module and optimizers to the device. Raises: ConfigError for a module without latents to share."""
        module = self.lightning_module
        if not getattr(module, "shards_latents", False):
            raise ConfigError(
                f"trainer.strategy={LATENTS} shares the latents of a sparse autoencoder; this run has none.",
                fix="trainer.strategy=ddp",
            )
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        self.precision_plugin.convert_module(self.model)
        self.model_to_device()  # each process has other weights: nothing is copied from the main one
        if trainer.state.fn is TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if trainer.state.fn is TrainerFn.FITTING:
            _optimizers_to_device(self.optimizers, self.root_device)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write a file per process, then the one that names them. Collective. Raises: RunFailed, on all processes."""
        self._files.save(checkpoint, Path(filepath), self._shards, self.checkpoint_io)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what all processes share, and this one's part. Raises: ConfigError, SchemaError."""
        common = super().load_checkpoint(checkpoint_path, weights_only)
        return self._files.load(common, Path(checkpoint_path), self._shards)

    @property
    def _shards(self) -> LatentShards:
        return LatentShards(self.global_rank, self.world_size)

    @classmethod
    def register_strategies(cls, strategy_registry: Any) -> None:
        """Register the name, once."""
        if LATENTS not in strategy_registry:
            strategy_registry.register(LATENTS, cls, description="latents of an autoencoder shared by processes")


def shards_of(settings: TrainerConfig, found: Processes) -> LatentShards:
    """Return this process's place among those that share the latents, before the Trainer is made.

    Args:
        settings: devices and nodes.
        found: what a launcher started.
    """
    size = settings.devices * settings.num_nodes
    numbered = found.launcher in ("srun", "torchrun")
    rank = found.rank if numbered else found.node * settings.devices + found.local_rank
    return LatentShards(rank, size)


def require_same_place(shards: LatentShards, trainer: lightning.Trainer) -> None:
    """Check that the Trainer gives a process the place for which its weights were made. Raises: ConfigError."""
    if (shards.rank, shards.size) != (trainer.global_rank, trainer.world_size):
        raise ConfigError(
            f"the autoencoder is part {shards.rank} of {shards.size}, its process number {trainer.global_rank} of "
            f"{trainer.world_size}.",
            fix="the same trainer.devices and trainer.num_nodes for module and Trainer",
        )


def clip_norm(parameters: list[tuple[torch.Tensor, bool]], largest: float, shards: LatentShards) -> torch.Tensor:
    """Scale gradients to a norm of at most `largest` over all processes, as torch's `clip_grad_norm_` does.

    Args:
        parameters: gradient, and whether each process has its own part of it; the others count once.
        largest: maximum norm.
        shards: the processes.

    Returns: the norm before.
    """
    squares = [torch.linalg.vector_norm(gradient).square() for gradient, own in parameters if own]
    whole = [torch.linalg.vector_norm(gradient).square() for gradient, own in parameters if not own]
    norm = (shards.total(torch.stack(squares).sum()) + sum(whole)).sqrt()
    factor = (largest / (norm + 1e-6)).clamp(max=1)
    for gradient, _ in parameters:
        gradient.mul_(factor)
    return norm
