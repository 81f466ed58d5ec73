"""What the runs that train a part of a diffusion model have in common: the contract of their configurations, and which
settings are refused. The checks run when a configuration is made, before anything is loaded.
"""

from collections.abc import Sized
from pathlib import Path
from typing import Any, Protocol

import lightning

from diffprobe.config.schema import DataConfig, LoggerConfig, TrainerConfig
from diffprobe.core.errors import ConfigError


class GenerativeModule(lightning.LightningModule):
    """A LightningModule that can write what it has trained."""

    def save(self, folder: Path) -> None:
        """Write the weights in diffusers' format."""
        raise NotImplementedError


class GenerativeData(lightning.LightningDataModule):
    """The data of such a run; batches are row numbers."""

    val: Sized
    """The validation rows."""


class GenerativeTraining(Protocol):
    """The configuration of a run that trains a part of a diffusion model, and how the run is built from it."""

    experiment: str
    data: DataConfig
    trainer: TrainerConfig
    logger: LoggerConfig
    seed: int
    output: str
    ema_decay: float

    def require_weights(self) -> None:
        """Check that the trained weights which the run builds on exist. Raises: WeightsMissing."""

    def inputs(self) -> dict[str, str]:
        """Return the digest of each trained network that the run opens, by name. Raises: WeightsMissing."""

    def make(self) -> tuple[GenerativeModule, GenerativeData]:
        """Build the module and its data."""


def require_settings(config: Any, *, shares: tuple[str, ...] = (), not_negative: tuple[str, ...] = ()) -> None:
    """Judge a run's own keys, those that all such runs have (data, warmup_steps, ema_decay) among them.

    Args:
        config: the run's configuration.
        shares: further keys that lie in 0..1.
        not_negative: further keys that are at least 0.
    Raises: ConfigError.
    """
    if not 0 <= config.ema_decay < 1:
        raise ConfigError(
            f"ema_decay={config.ema_decay} is out of range: 0 to 1, without 1.",
            "at 1 the average would never learn of a step; 0 saves the last weights as they are",
        )
    for name in shares:
        if not 0 <= getattr(config, name) <= 1:
            raise ConfigError(f"{name}={getattr(config, name)} is no share: 0 to 1.")
    for name in ("warmup_steps", *not_negative):
        if not getattr(config, name) >= 0:
            raise ConfigError(f"{name}={getattr(config, name)} is out of range: at least 0.")
    default = DataConfig(path="").shuffle_buffer
    if config.data.shuffle_buffer != default:  # it orders a stream; here a split is decoded once and kept in memory
        raise ConfigError(
            f"data.shuffle_buffer={config.data.shuffle_buffer} does nothing here.",
            f"every epoch shuffles the whole split; leave the key unset ({default})",
        )
