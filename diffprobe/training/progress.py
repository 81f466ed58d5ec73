"""Progress of training: advances a bar by one per training batch, and renews the heartbeat of a job."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

from diffprobe.core.heartbeat import Heartbeat, heartbeat_path
from diffprobe.core.progress import Bar


class StepBar(Callback):
    """Advances a bar by one with each training batch.

    Args:
        make: takes the number of batches to come and returns the bar as a context manager; called when training
            starts, and not at all for a probe without training steps.
    """

    def __init__(self, make: Callable[[int], AbstractContextManager[Bar]]) -> None:
        self._make = make
        self._context: AbstractContextManager[Bar] | None = None
        self._bar: Bar | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Open the bar."""
        self._context = self._make(max((steps_of(trainer) or 0) - trainer.global_step, 0))
        self._bar = self._context.__enter__()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance."""
        if self._bar is not None:
            self._bar.update(1)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar of a run that failed."""
        self._close()

    def _close(self) -> None:
        if self._context is not None:
            self._context.__exit__(None, None, None)
        self._context = self._bar = None


class StepHeartbeat(Callback):
    """Renews the heartbeat of a job with each training batch: the steps of earlier starts count as done."""

    def __init__(self) -> None:
        self._beat: Heartbeat | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write for the first time."""
        path = heartbeat_path()
        if path is not None:
            total = steps_of(trainer) or 0
            self._beat = Heartbeat(path, what="train", unit="steps", total=total, done=trainer.global_step)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count."""
        if self._beat is not None:
            self._beat.update(1)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Write for the last time."""
        if self._beat is not None:
            self._beat.write()


def steps_of(trainer: lightning.Trainer) -> int | None:
    """Return the number of training batches of a whole run; None if an epoch has no known length, or without end."""
    batches = trainer.num_training_batches * (trainer.max_epochs or 1)
    limits = [batches] if trainer.max_epochs != -1 else []
    limits += [trainer.max_steps] if trainer.max_steps >= 0 else []
    total = min(limits, default=float("inf"))
    return None if total == float("inf") else int(total)
