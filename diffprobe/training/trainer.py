"""Make the Lightning Trainer of a run from its config, with the settings that diffprobe fixes."""

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, unknown
from diffprobe.training.checkpoint import checkpoint_callback

_NOISE = (
    ".*does not have many workers.*",
    ".*sync_dist=True.*",
    ".*number of training batches.*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*treespec, LeafSpec.*",
    ".*lr_scheduler.step\\(\\).*",
)


def make_trainer(
    config: TrainerConfig,
    *,
    run_dir: Path,
    logger: Logger | None = None,
    callbacks: Sequence[Callback] = (),
    **overrides: Any,
) -> lightning.Trainer:
    """Make the Trainer of one run. It keeps `last.ckpt` in `run_dir`.

    Args:
        config: settings of the Trainer.
        run_dir: folder of the run.
        logger: logger of the curves; None for none.
        callbacks: further callbacks.
        overrides: arguments of Lightning's Trainer that no config has, for example `limit_val_batches`.

    Raises: ConfigError for an unknown strategy, or for hardware that this machine does not have; precision and devices
        are never lowered.
    """
    _check_machine(config)
    arguments: dict[str, Any] = {
        "default_root_dir": run_dir,
        "max_epochs": config.max_epochs,
        "max_steps": config.max_steps,
        "precision": config.precision,
        "accelerator": config.accelerator,
        "devices": config.devices,
        "strategy": config.strategy,
        "num_nodes": config.num_nodes,
        "gradient_clip_val": config.gradient_clip,
        "log_every_n_steps": config.log_every_steps,
        "enable_progress_bar": config.enable_progress_bar,
        "enable_model_summary": False,
        "logger": logger or False,
        "callbacks": [checkpoint_callback(run_dir, every_steps=config.checkpoint_every_steps), *callbacks],
        "use_distributed_sampler": False,  # the DataModule splits samples between processes
        "num_sanity_val_steps": 0,
        "inference_mode": False,  # metric states made in inference mode could not be updated outside of it
    }
    try:
        trainer = lightning.Trainer(**{**arguments, **overrides})
    except (MisconfigurationException, ValueError) as error:
        raise ConfigError(f"this machine cannot train with these settings of trainer: {error}") from error
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):  # "auto" on several devices in a notebook
        raise ConfigError(
            f"trainer.devices={config.devices} in a notebook trains in child processes whose results are lost.",
            fix="trainer.devices=1; or diffprobe train, from a shell",
        )
    return trainer


def _check_machine(config: TrainerConfig) -> None:
    strategies = ["auto", *StrategyRegistry.available_strategies()]
    if config.strategy not in strategies:
        raise unknown("trainer.strategy", config.strategy, strategies, ConfigError)
    if config.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError(
            "trainer.accelerator=gpu, but torch sees no GPU.",
            "device and precision are part of the result, so they are never lowered automatically",
            fix="on this machine: trainer=cpu trainer.precision=32-true",
        )
    on_cpu = config.accelerator == "cpu" or not torch.cuda.is_available()
    if on_cpu and config.precision in ("16-mixed", "16-true"):
        raise ConfigError(f"trainer.precision={config.precision} needs a GPU.", fix="on the CPU: 32-true or bf16-mixed")


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's info messages and warnings that do not apply here; errors and other messages are kept."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning")]
    levels = [log.level for log in loggers]
    with warnings.catch_warnings():
        for pattern in _NOISE:
            warnings.filterwarnings("ignore", pattern)
        for log in loggers:
            log.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for log, level in zip(loggers, levels, strict=True):
                log.setLevel(level)


def is_main_process() -> bool:
    """Return whether this is the main process, from the environment, before there is a Trainer.

    RANK counts over all processes. Without it, no other variable is enough alone: all children of an interactive Slurm
    shell have SLURM_PROCID=0, and the first process of every node has LOCAL_RANK=0.
    """
    names = ("RANK",) if "RANK" in os.environ else ("LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(int(os.environ.get(name, "0")) == 0 for name in names)
