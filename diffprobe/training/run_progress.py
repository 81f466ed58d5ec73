"""What a run is doing, in words, with a bar and the time left: preparing, fitting, validating, testing, saving."""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from diffprobe.core.progress import Announce, Bar, ProgressDisplay
from diffprobe.core.time_left import time_left
from diffprobe.training.progress import steps_of

LINE_EVERY_S = 60.0
"""Seconds between two lines on the state of a training whose output is not a terminal."""


class RunProgress(Callback):
    """Says what a run is doing: fitting, validating, testing, saving. On the main process only.

    Each phase is one line; below it, on a terminal, a bar over all its steps with the time left. Where the output is
    not a terminal (the log of a job), fitting has a line each minute in place of the bar.

    Args:
        announce: receives the lines; standard error if None.
        display: makes the display of the bars; one on standard error if None.
        clock: seconds, for the lines of a long fitting.
    """

    def __init__(
        self,
        announce: Announce | None = None,
        *,
        display: Callable[[], ProgressDisplay] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._announce = announce or (lambda line: print(line, file=sys.stderr, flush=True))
        self._display = display or (lambda: ProgressDisplay(transient=True))
        self._clock = clock
        self._open = ExitStack()
        self._bar: Bar | None = None
        self._started = self._last = 0.0
        self._done = self._total = 0
        self._has_terminal = self._has_fitted = False

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say that the training features are read, from which means and variances are taken before the first step."""
        self._has_fitted = True
        self._begin(trainer, "preparing: reading the training data", None, "")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say how many steps there are, or are left of an earlier start, and open their bar."""
        total = steps_of(trainer)
        if total is None:
            self._begin(trainer, "fitting: an unknown number of steps", None, "steps")
            return
        left = total - trainer.global_step
        of = "" if left == total else f" of {total:,}, continued"
        self._begin(trainer, f"fitting: {left:,} steps{of}", left, "steps")

    def on_train_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        """Advance; without a terminal, say each minute where training is and how long it will take."""
        if not trainer.is_global_zero:
            return
        self._advance()
        now = self._clock()
        if not self._has_terminal and now - self._last >= LINE_EVERY_S and self._done != self._total:
            self._last = now
            left = f" of {self._total:,} steps, {time_left(self._done, self._total, now - self._started)}"
            self._announce(f"fitting: {self._done:,}{left if self._total else ' steps'}")

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say so, unless it is the validation at the end of an epoch."""
        if trainer.state.fn != TrainerFn.FITTING:
            n = _sum(trainer.num_val_batches)
            what = "validating" if self._has_fitted else "fitting in closed form, and validating"
            self._begin(trainer, f"{what}: {n:,} batches", n, "batches")

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say so."""
        n = _sum(trainer.num_test_batches)
        self._begin(trainer, f"testing: {n:,} batches", n, "batches")

    def on_validation_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        """Advance, outside of fitting."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._advance()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance."""
        self._advance()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the bar of a phase; after the last one, say that the probe and the result are written."""
        self._open.close()
        self._bar = None
        if stage == TrainerFn.TESTING and trainer.is_global_zero:
            self._announce("saving: probe and result")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar of a run that failed."""
        self._open.close()
        self._bar = None

    def _begin(self, trainer: lightning.Trainer, line: str, total: int | None, unit: str) -> None:
        if not trainer.is_global_zero:
            return
        self._open.close()
        self._announce(line)
        display = self._open.enter_context(self._display())
        self._has_terminal = display.is_drawn
        self._bar = self._open.enter_context(display.bar(total, line.partition(":")[0], unit=unit, keep=False))
        self._done, self._total = 0, total or 0
        self._started = self._last = self._clock()

    def _advance(self) -> None:
        self._done += 1
        if self._bar is not None:
            self._bar.update(1)


def _sum(batches: list[int | float]) -> int:
    """Return the number of batches of all loaders; those of unknown length count as none."""
    return sum(int(n) for n in batches if n != float("inf"))
