"""Progress of training: advances a progress bar by one per training batch."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback

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
        total = int(trainer.num_training_batches * (trainer.max_epochs or 1))
        if trainer.max_steps >= 0:
            total = min(total, trainer.max_steps)
        self._context = self._make(total - trainer.global_step)
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
