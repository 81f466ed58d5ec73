"""Averaged weights of a diffusion model, which are the ones that are saved. Owns how the average starts."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def bias_corrected(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return the update of an exponential average that forgets where it started.

    It is corrected as Adam's moments are (Kingma and Ba, 1412.6980, section 3): after n steps the weights of step i
    count by decay ** (n - i), normalised. Uncorrected, the untrained weights would keep a share of decay ** n, a third
    after 2,000 steps at 0.9995.

    Args:
        decay: share of the average that the next step keeps, in the long run.
    Returns: (average, current, steps averaged before) -> average, as torch's AveragedModel asks for.
    """

    def update(averaged: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
        return averaged.lerp(current, (1 - decay) / (1 - decay ** (int(n_averaged) + 1)))

    return update


class Averaging(WeightAveraging):
    """Lightning's weight averaging with the update above; also for a run with no epoch left to train."""

    def __init__(self, decay: float) -> None:
        # buffers stay as they are: averaged whole numbers (positions in a text) would be cut to lower ones
        super().__init__(use_buffers=False, avg_fn=bias_corrected(decay))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Make the average where the model will be trained: Lightning asks for it before it moves the model there."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Put the average in place; Lightning's own hook for it is called only after at least one epoch."""
        self.on_train_end(trainer, pl_module)
