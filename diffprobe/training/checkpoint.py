"""Checkpoints: an unfinished run continues from its last one, a finished run starts anew.

`last.ckpt` is the only one. `runs` passes its path to `trainer.fit` and to nothing else: evaluation uses the weights in
memory. The file itself is in `checkpoint_file.py`.
"""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from diffprobe.core.artifact import read_json, write_artifact
from diffprobe.core.errors import ConfigError, SchemaError
from diffprobe.core.json_file import expect
from diffprobe.core.result import INPUT, RESULT_FILE, predictions_file
from diffprobe.core.signals import Terminated, take_sigterm
from diffprobe.training.checkpoint_file import verify_checkpoint
from diffprobe.training.checkpoint_shards import files_of
from diffprobe.training.requeue import Requeue
from diffprobe.training.wandb_history import CheckpointedWandbLogger

LAST = "last.ckpt"
INPUTS = "inputs.json"
"""Digests of what a run rests on, written when it starts: a checkpoint does not have them."""
CONFIG = "configuration"
"""Name of the configuration's digest among the inputs; the name of the folder has its first digits only."""
LIGHTNINGS_OWN = "hpc_ckpt_*.ckpt"
"""What Lightning wrote at SIGUSR1 in earlier versions, in the middle of a step, and loaded over trained weights."""
_KIND, _SCHEMA_VERSION = "run_inputs", 1


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint as `last.ckpt` in the run's folder, and sees to it that signals end or save the run.

    Lightning calls checkpoint callbacks last, so that what other callbacks change in a step is in the file.

    Args:
        run_dir: folder of the run.
        every_steps: optimiser steps between checkpoints; 0 for one at the end of each epoch.
        requeue: asks for a checkpoint between two steps.
    """

    def __init__(self, run_dir: Path, *, every_steps: int = 0, requeue: Requeue | None = None) -> None:
        super().__init__(
            dirpath=run_dir,
            filename=Path(LAST).stem,
            save_top_k=1,
            enable_version_counter=False,
            every_n_train_steps=every_steps or None,
            every_n_epochs=None if every_steps else 1,
            save_on_train_epoch_end=None if every_steps else True,
        )
        self._file, self._requeue = run_dir / LAST, requeue

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals, after Lightning has registered its own handlers."""
        super().on_train_start(trainer, pl_module)
        take_sigterm()
        for logger in trainer.loggers:
            if isinstance(logger, CheckpointedWandbLogger):
                logger.continue_from(trainer.global_step)
        if self._requeue is not None:
            self._requeue.begin_steps()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals, after Lightning has registered its own handlers, unless they wait for a training step."""
        if self._requeue is None or not self._requeue.in_steps:
            take_sigterm()

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take the signals, after Lightning has registered its own handlers."""
        take_sigterm()

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *rest: Any) -> None:
        """Save if it is time to, or if a signal asked for it during the step."""
        super().on_train_batch_end(trainer, pl_module, *rest)
        self._save_for_requeue(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Requeue if a signal asked for it after the last step; a restart repeats what is not saved."""
        super().on_train_end(trainer, pl_module)
        if self._requeue is not None:
            self._requeue.end_steps()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """End the processes that this one started; they would wait for it in a collective."""
        super().on_exception(trainer, pl_module, exception)
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _SubprocessScriptLauncher):
            launcher.kill(signal.SIGKILL)

    def _save_for_requeue(self, trainer: lightning.Trainer) -> None:
        """Save if a signal asked for it, and end if the job will start again or is ended. Raises: Terminated."""
        requeue = self._requeue
        if requeue is None or not requeue.applies:
            return
        # the signals reach the processes in different steps; saving is collective
        if not self._on_any(trainer, requeue.asked or requeue.ending):
            return
        asked, ending = self._on_any(trainer, requeue.asked), self._on_any(trainer, requeue.ending)
        trainer.save_checkpoint(self._file)
        saved = f"'{self._file}' is written at step {trainer.global_step}"
        requeued = self._on_any(trainer, asked and requeue.submit(f"SIGUSR1: {saved}"))
        if ending and trainer.is_global_zero:
            print(f"SIGTERM: {saved}.", file=sys.stderr, flush=True)
        if ending or requeued:
            # Lightning logs a step after its callbacks, and the checkpoint counts this step as done
            trainer._logger_connector.on_batch_end()
            trainer._logger_connector.update_train_step_metrics()
            raise Terminated

    @staticmethod
    def _on_any(trainer: lightning.Trainer, here: bool) -> bool:
        """Return whether something is true on any process."""
        return here if trainer.world_size == 1 else bool(trainer.strategy.reduce_boolean_decision(here, all=False))


def find_checkpoint(run_dir: Path, *, resume: bool) -> Path | None:
    """Return the checkpoint to continue from, or None to start at the beginning.

    Args:
        resume: `trainer.resume`; False starts anew in any case.

    Raises: ConfigError for an unfinished run with a checkpoint that Lightning wrote by itself under an earlier version:
        it may have half of a step, so it is neither loaded nor passed over.
    """
    if not resume or (run_dir / RESULT_FILE).exists():
        return None
    foreign = sorted(run_dir.glob(LIGHTNINGS_OWN))
    if foreign:
        raise ConfigError(
            f"the unfinished run has a checkpoint of an earlier version: '{foreign[0]}'.",
            "it was saved in the middle of a step, so that training cannot continue from it",
            fix="trainer.resume=false starts anew and removes it",
        )
    last = run_dir / LAST
    return last if last.exists() else None


def note_inputs(run_dir: Path, inputs: Mapping[str, str]) -> None:
    """Record the inputs of a run that starts: name -> digest."""
    write_artifact(run_dir / INPUTS, {"inputs": dict(inputs)}, kind=_KIND, schema_version=_SCHEMA_VERSION)


def require_resumable(checkpoint: Path, inputs: Mapping[str, str]) -> None:
    """Check that a run can continue from a checkpoint: it is whole, and the run rests on what it started with.

    Raises: SchemaError, ConfigError; see `verify_checkpoint` and `require_same_inputs`.
    """
    verify_checkpoint(checkpoint)
    require_same_inputs(checkpoint.parent, inputs)


def require_same_inputs(run_dir: Path, inputs: Mapping[str, str]) -> None:
    """Check that an interrupted run would continue with the inputs it started with.

    Raises: ConfigError if an input changed since, or if the folder of the run has no record of them; SchemaError if the
        record is damaged.
    """
    path = run_dir / INPUTS
    if not path.is_file():
        raise ConfigError(
            f"the interrupted run in '{run_dir}' has no {INPUTS}, so its inputs cannot be compared.",
            fix="trainer.resume=false starts anew",
        )
    try:
        tree = read_json(path, kind=_KIND, schema_version=_SCHEMA_VERSION)
        before: dict[str, Any] = expect(tree.get("inputs"), dict, where=f"'{path}', inputs")
    except SchemaError as error:
        raise SchemaError(error.what, *error.details, fix="trainer.resume=false starts anew") from error
    other = sorted(name for name in {*before, *inputs} if before.get(name) != inputs.get(name))
    if other:
        raise ConfigError(
            f"the inputs of the interrupted run in '{run_dir}' have changed since it started.",
            f"changed since: {', '.join(name.removeprefix(INPUT) for name in other)}",
            fix="restore the files; or trainer.resume=false to start anew with the current ones",
        )


def forget(*folders: Path) -> None:
    """Remove what a finished run left, so that it is not mistaken for that of the run that starts.

    These are checkpoints, result and predictions.

    Call it after all validation, right before training, so that a refused run keeps its files.
    """
    for folder in folders:
        # in this order: other processes that start now see no checkpoint
        kept, shards = folder.glob(predictions_file("*")), folder.glob(files_of(folder / LAST))
        for path in (folder / LAST, *shards, *folder.glob(LIGHTNINGS_OWN), folder / RESULT_FILE, *kept):
            path.unlink(missing_ok=True)
