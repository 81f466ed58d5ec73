"""Exponential moving average (EMA) of the weights of a diffusion model, with bias correction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


def bias_corrected_update(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Return the update of an exponential moving average that does not depend on its initial value.

    The correction is that of Adam's moments (Kingma and Ba, 1412.6980, section 3): after n steps the weights of step i
    count by decay ** (n - i), normalised. Without it the untrained weights would keep a share of decay ** n: 0.37 after
    2,000 steps at 0.9995.

    Args:
        decay: share of the average that each step keeps in the long run.
    Returns: (average, current, number of averaged steps) -> average, the `avg_fn` of torch's AveragedModel.
    """

    def update(averaged: Tensor, current: Tensor, n_averaged: Tensor | int) -> Tensor:
        return averaged.lerp(current, (1 - decay) / (1 - decay ** (int(n_averaged) + 1)))

    return update


class EMACallback(WeightAveraging):
    """Lightning's weight averaging with the bias-corrected update; a run with no epoch left to train works too."""

    def __init__(self, decay: float) -> None:
        # buffers are not averaged: the average of integers (token positions) would be truncated
        super().__init__(use_buffers=False, avg_fn=bias_corrected_update(decay))

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Create the average on the training device: Lightning calls this before it moves the model there."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    @property
    def average(self) -> Any:
        """The module with the averaged weights, during a fit."""
        assert self._average_model is not None
        return self._average_model.module

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Copy the average into the model; Lightning's own hook runs only after at least one epoch."""
        self.on_train_end(trainer, pl_module)

    @contextmanager
    def averaged(self, pl_module: Any) -> Iterator[None]:
        """Give a module the averaged weights for the length of the block, during `fit`."""
        self._swap_models(pl_module)
        try:
            yield
        finally:
            self._swap_models(pl_module)
