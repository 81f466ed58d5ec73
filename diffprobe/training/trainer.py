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
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from diffprobe.backbones.device import warn_slow_bfloat16
from diffprobe.config.schema import TrainerConfig
from diffprobe.core.errors import ConfigError, SchemaError, unknown
from diffprobe.core.signals import Terminated
from diffprobe.training.checkpoint import RunCheckpoint
from diffprobe.training.checkpoint_file import CheckpointFile
from diffprobe.training.latents_strategy import LatentsStrategy
from diffprobe.training.launch import cluster_environment
from diffprobe.training.requeue import Requeue
from diffprobe.training.run_progress import RunProgress

_NOISE = (
    ".*does not have many workers.*",
    ".*sync_dist=True.*",
    ".*number of training batches.*smaller than the logging interval.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*treespec, LeafSpec.*",
    ".*lr_scheduler.step\\(\\).*",
    ".*`srun` command is available on your system but is not used.*",
)
_DOES_NOT_FIT = ("Error(s) in loading state_dict", "loaded state dict ")
"""Beginnings of what torch says of weights, and of an optimizer's state, of another network."""
_LIGHTNINGS_FOLDER = "lightning"
"""Folder that does not exist: Lightning looks there for checkpoints of its own, and prefers them to trained weights."""


def make_trainer(
    config: TrainerConfig,
    *,
    run_dir: Path,
    logger: Logger | None = None,
    callbacks: Sequence[Callback] = (),
    requeue: Requeue | None = None,
    **overrides: Any,
) -> lightning.Trainer:
    """Make the Trainer of one run. It keeps `last.ckpt` in `run_dir`.

    Args:
        config: settings of the Trainer.
        run_dir: folder of the run.
        logger: logger of the curves; None for none.
        callbacks: further callbacks.
        requeue: what takes SIGUSR1 under SLURM; None to leave that signal alone.
        overrides: arguments of Lightning's Trainer that no config has, for example `limit_val_batches`.

    Raises: ConfigError for an unknown strategy, for hardware that this machine does not have (precision and devices are
        never lowered), for processes that a launcher started and the settings do not ask for, or for settings of the
        Trainer in the environment.
    """
    _check_machine(config)
    _check_environment()
    environment = cluster_environment(config, os.environ)
    arguments: dict[str, Any] = {
        "default_root_dir": run_dir / _LIGHTNINGS_FOLDER,
        "plugins": [environment, CheckpointFile()],
        "max_epochs": config.max_epochs,
        "max_steps": config.max_steps,
        "precision": config.precision,
        "accelerator": config.accelerator,
        "devices": config.devices,
        "strategy": config.strategy,
        "num_nodes": config.num_nodes,
        "gradient_clip_val": config.gradient_clip,
        "log_every_n_steps": config.log_every_steps,
        "enable_progress_bar": False,  # `RunProgress` has the time left of the whole run, Lightning's that of an epoch
        "enable_model_summary": False,
        "logger": logger or False,
        "callbacks": [
            RunCheckpoint(run_dir, every_steps=config.checkpoint_every_steps, requeue=requeue),
            *([RunProgress()] if config.enable_progress_bar else []),
            *callbacks,
        ],
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
    LatentsStrategy.register_strategies(StrategyRegistry)
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
    if on_cpu and config.precision.startswith("bf16"):
        warn_slow_bfloat16(f"trainer.precision={config.precision}", "trainer.precision=32-true")


def _check_environment() -> None:
    """Refuse arguments of Lightning's Trainer in variables: they would change a run whose record does not name them."""
    found = sorted(name for name in os.environ if name.startswith("PL_TRAINER_"))
    if found:
        raise ConfigError(
            f"the environment sets arguments of Lightning's Trainer: {', '.join(found)}.",
            "they would change the run, and its result would not name them",
            fix=f"unset {' '.join(found)}; settings of a run are keys of trainer",
        )


def fit(
    trainer: lightning.Trainer,
    module: lightning.LightningModule,
    data: lightning.LightningDataModule,
    checkpoint: Path | None,
) -> None:
    """Train, from the start or from a checkpoint. Raises: SchemaError for a checkpoint of another module."""
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except (RuntimeError, ValueError) as error:
        first, *others = str(error).splitlines() or [""]
        if checkpoint is None or not first.startswith(_DOES_NOT_FIT):
            raise
        raise SchemaError(
            f"the checkpoint '{checkpoint}' is of other networks than this run has: another version wrote it.",
            *(line.strip() for line in others[:3]),
            fix="trainer.resume=false, which starts anew",
        ) from error


@contextmanager
def honest_ends(requeue: Requeue | None = None) -> Iterator[None]:
    """Give the ends that Lightning makes of signals their own exceptions again: KeyboardInterrupt and `Terminated`.

    Lightning ends the program with status 1 at Ctrl-C and with status 0 at SIGTERM.

    Args:
        requeue: what takes SIGTERM in a job of SLURM. The signal also ends W&B's own process, and a connection that is
            lost by that is not a failure of the run.
    """
    try:
        yield
    except ConnectionError as error:
        if requeue is not None and requeue.ending:
            raise Terminated from error
        raise
    except SIGTERMException as error:
        raise Terminated from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


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
