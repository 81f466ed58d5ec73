"""What a run is doing, in words, with a bar and the time left: preparing, fitting, validating, testing, saving."""

from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import ExitStack
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from diffprobe.core.processes import is_main_process
from diffprobe.core.progress import Announce, Bar, ProgressDisplay, print_note
from diffprobe.training.module import ProbeModule
from diffprobe.training.progress import steps_of


def phase_notes(shown: bool) -> Announce:
    """Return what prints the phases of a run outside of its Trainer: on the main process if `shown`, else nothing."""
    return print_note if shown and is_main_process() else lambda line: None


class RunProgress(Callback):
    """Says what a run is doing: fitting, validating, testing, saving. On the main process only.

    Each phase is one line; below it, on a terminal, a bar over all its steps with the time left, and one over each
    exact pass over a split (statistics of the training set, closed forms). Where the output is not a terminal (the log
    of a job), a line each half minute takes the place of a bar.

    Args:
        announce: receives the lines; standard error if None.
        display: makes the display of the bars; one on standard error if None.
    """

    def __init__(
        self,
        announce: Announce | None = None,
        *,
        display: Callable[[], ProgressDisplay] | None = None,
    ) -> None:
        self._announce = announce or print_note
        self._make_display = display or (lambda: ProgressDisplay(transient=True))
        self._open = ExitStack()
        self._display: ProgressDisplay | None = None
        self._bar: Bar | None = None
        self._epoch = ExitStack()
        self._epoch_bar: Bar | None = None
        self._has_fitted = False

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Watch the exact passes of a probe over a split."""
        if isinstance(pl_module, ProbeModule):
            pl_module.watch_pass = self._watch

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
        """Advance."""
        self._advance()

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say so, unless it is the validation at the end of an epoch, which has a bar alone."""
        n = _sum(trainer.num_val_batches)
        if trainer.state.fn != TrainerFn.FITTING:
            what = "validating" if self._has_fitted else "fitting in closed form, and validating"
            self._begin(trainer, f"{what}: {n:,} batches", n, "batches")
        elif self._display is not None:
            self._epoch_bar = self._epoch.enter_context(self._display.bar(n, "validating", unit="batches", keep=False))

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Say so."""
        n = _sum(trainer.num_test_batches)
        self._begin(trainer, f"testing: {n:,} batches", n, "batches")

    def on_validation_batch_end(self, trainer: lightning.Trainer, *args: Any, **kwargs: Any) -> None:
        """Advance the bar of the phase, or that at the end of an epoch."""
        if trainer.state.fn != TrainerFn.FITTING:
            self._advance()
        elif self._epoch_bar is not None:
            self._epoch_bar.update(1)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Close the bar at the end of an epoch."""
        self._epoch_bar = None
        self._epoch.close()

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Advance."""
        self._advance()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Close the bar of a phase; after the last one, say that the probe and the result are written."""
        self._close()
        if stage == TrainerFn.TESTING and trainer.is_global_zero:
            self._announce(f"saving: probe and result{getattr(pl_module, 'saving_note', '')}")

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar of a run that failed."""
        self._close()

    def _begin(self, trainer: lightning.Trainer, line: str, total: int | None, unit: str) -> None:
        if not trainer.is_global_zero:
            return
        self._close()
        self._announce(line)
        self._display = self._open.enter_context(self._make_display())
        what = line.partition(":")[0]
        self._bar = self._open.enter_context(self._display.bar(total, what, unit=unit, keep=False))

    def _close(self) -> None:
        self._display = self._bar = self._epoch_bar = None
        self._epoch.close()
        self._open.close()

    def _watch(self, batches: Iterable[Any], split: str) -> Iterator[Any]:
        """Yield the batches of an exact pass, with a bar of its own below that of the phase."""
        if self._display is None:  # not the main process
            yield from batches
            return
        total = len(batches) if isinstance(batches, Sized) else None
        with self._display.bar(total, f"reading {split}", unit="batches", keep=False) as bar:
            for batch in batches:
                yield batch
                bar.update(1)

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.update(1)


def _sum(batches: list[int | float]) -> int:
    """Return the number of batches of all loaders; those of unknown length count as none."""
    return sum(int(n) for n in batches if n != float("inf"))
