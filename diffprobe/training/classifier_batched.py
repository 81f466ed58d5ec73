"""Classifiers of all cells of a run, computed together: `probe.batched=true` without a grid."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from diffprobe.features.batch import FeatureBatch
from diffprobe.training.classifier import ClassifierModule
from diffprobe.training.convergence import GradientSums
from diffprobe.training.head_stack import HeadStack


class BatchedClassifierModule(ClassifierModule):
    """A bank of classifiers whose losses, gradients and steps are computed together, equal to rounding.

    With many cells, targets and controls a run is as many calls for each head as there are heads; in a stack
    (`HeadStack`) heads with equal numbers of classes are one tensor.

    Args:
        arguments, settings: see `ClassifierModule`.
    """

    fused = True

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._joined = HeadStack([self], joined=True)
        self._gradient_stacks: dict[int, HeadStack] = {}

    def training_step(self, batch: FeatureBatch, batch_idx: int) -> Tensor:
        """Return the sum of the heads' mean losses over the joint batch of all processes. Raises: NonFinite."""
        loss = self._joined.loss(batch)
        if self._joined.has_failed:
            self.require_heads()
        self.log("train/loss", loss.detach() / len(self.heads), batch_size=len(batch), prog_bar=True)
        return loss

    def add_gradients(self, batch: FeatureBatch, sums: Iterable[GradientSums]) -> None:
        """Add the gradients of a batch of the training set."""
        for part in sums:
            if id(part) not in self._gradient_stacks:
                self._gradient_stacks[id(part)] = HeadStack([self], joined=True, banks=[part.banks])
            self._gradient_stacks[id(part)].add_gradients(batch, [part])

    def compare_gradients(self, sums: Iterable[GradientSums]) -> dict[str, float | None]:
        """Compare the gradients with the final and with the initial weights."""
        self._gradient_stacks.clear()
        return super().compare_gradients(sums)
