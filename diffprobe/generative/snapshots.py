"""Snapshots of a denoiser during its training: the averaged weights as a pipeline folder, which every command reads."""

import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities.seed import isolate_rng

from diffprobe.core.atomic_file import atomic_folder
from diffprobe.core.errors import ConfigError
from diffprobe.generative.ema import EMACallback

SNAPSHOTS = "snapshots"
"""Folder of the snapshots inside the run folder."""


def run_folder(trainer: Any) -> Path:
    """Return the folder of a run: that of its checkpoint."""
    return Path(trainer.checkpoint_callback.dirpath)


def require_reached(trainer: Any, last: int, key: str) -> None:
    """Refuse a step that the training does not reach. Raises: ConfigError."""
    total = int(trainer.estimated_stepping_batches)
    if last > total:
        raise ConfigError(f"{key}={last} is never reached: the training has {total} steps.", fix=f"at most {total}")


def save_averaged(trainer: Any, module: Any, folder: Path) -> None:
    """Write the weights that the run would save if it ended now: the averages, or the current ones without averaging.

    Training does not depend on it: weights and random states are the same afterwards.
    """
    averaging = next((callback for callback in trainer.callbacks if isinstance(callback, EMACallback)), None)
    swapped: AbstractContextManager[None] = nullcontext() if averaging is None else averaging.averaged(module)
    with isolate_rng(), swapped:
        module.save(folder)


class Snapshots(Callback):
    """Writes `snapshots/step-N` in the run folder every so many steps; earlier runs' go when a training starts anew.

    Args:
        every_n_steps: steps between snapshots.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Remove the snapshots of an earlier run. Raises: ConfigError if no step has one."""
        require_reached(trainer, self.every_n_steps, "snapshot_every_steps")
        if trainer.global_step == 0:
            shutil.rmtree(run_folder(trainer) / SNAPSHOTS, ignore_errors=True)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Write a snapshot if the step has one."""
        step = trainer.global_step
        if step % self.every_n_steps == 0:
            with atomic_folder(run_folder(trainer) / SNAPSHOTS / f"step-{step}") as folder:
                save_averaged(trainer, pl_module, folder)
